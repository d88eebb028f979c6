"""Find copies of an image: a perceptual hash, a colour signature, and an index of both, and what else one look tells"""

import numpy as np
from PIL import Image

def perceptual_hash(
    img:Image.Image # An RGB image
) -> str: # 36 hex digits
    "Return the perceptual hash of `img`, of 144 bits"
    from imagehash import phash
    return str(phash(img, hash_size=12))

def phash_bits(
    phash:str # From `perceptual_hash`
) -> np.ndarray: # bool, shape (144,)
    "Return the bits of `phash`"
    return np.unpackbits(np.frombuffer(bytes.fromhex(phash), 'uint8')).astype(bool)

def colour_signature(
    img:Image.Image # An RGB image
) -> np.ndarray: # float32, shape (8,8,3), of norm 1
    "Reduce `img` to 8 x 8 colours without brightness and contrast: the product of two signatures is their correlation"
    a = np.asarray(img.resize((8, 8), Image.Resampling.BOX), 'float32')
    a = a - a.mean()
    return a/max(1e-6, np.linalg.norm(a))

CLOSE,_ALIKE = 44,.9   # copies differ in at most 44 of 144 bits, and their colours correlate by at least 0.9

def _words(bits):
    "Return hashes, shape (n,144), as 64-bit words, shape (3,n)"
    packed = np.zeros((len(bits), 24), 'uint8')
    if len(bits): packed[:, :18] = np.packbits(np.asarray(bits, bool), axis=1)
    return np.ascontiguousarray(packed.view('uint64').T)

def _near(words, word, close=CLOSE):
    "Return indices of the hashes in `words` that differ from `word` in at most `close` bits, and the numbers of bits"
    far = np.bitwise_count(words[0] ^ word[0])
    far += np.bitwise_count(words[1] ^ word[1])
    near = np.flatnonzero(far <= close)   # few: only there the third word is needed
    far = far[near] + np.bitwise_count(words[2, near] ^ word[2])
    return near[far <= close],far[far <= close]

def near_copies(
    bits, # Hashes of images, from `phash_bits`: array or list of shape (n,144)
    colours, # Their colour signatures, of shape (n,8,8,3) or (n,192)
    limits:tuple=(CLOSE, _ALIKE) # Most bits that differ, and least correlation of the colours
): # Yields (i, array of j > i, array of the bits that differ)
    "Yield each image that has copies, with those that come after it"
    words,colours = _words(bits),np.array([np.ravel(o) for o in colours])
    for i in range(len(bits)):
        near,differ = _near(words[:, i + 1:], words[:, i], limits[0])
        same = colours[near + i + 1] @ colours[i] >= limits[1]
        if same.any(): yield i,near[same] + i + 1,differ[same]

def _are_alike(groups, labels, most, differ):
    "Return whether `groups` join images that are alike by nature: of several labels, or over `most` and half of one"
    counts = np.zeros((len(groups), labels.max(initial=0) + 1), int)
    np.add.at(counts, (groups, labels), 1)
    mixed,joined = (counts[o.sum(1) > 1].sum() for o in (counts > 0, counts))
    some = joined/4 if differ and np.median(differ) > CLOSE*2/3 else len(groups)/10   # most copies differ less
    return mixed > max(5, some) or (counts.max(0, initial=0) > np.maximum(most, counts.sum(0)/2)).any()

def find_copies(
    bits, # As for `near_copies`
    colours, # As for `near_copies`
    labels # The label of each image
) -> tuple: # A number for each image, the same for copies: int, shape (n,); and the limits that suit these images
    "Group copies, and copies of copies, by stricter limits if the images of this set are alike by nature"
    labels = np.unique(labels, return_inverse=True)[1]
    for limits,most in ((CLOSE, _ALIKE), 4),((4, .99), 20),((-1, 1), 1):   # six of one shot are copies, fifty a camera
        groups,far = np.arange(len(bits)),[]
        for i,near,differ in near_copies(bits, colours, limits):
            groups[np.isin(groups, groups[near])] = groups[i]
            far += differ.tolist()
        if not _are_alike(groups, labels, most, far): break
    return groups,limits

class DuplicateIndex:
    "An index of images by hash and colours, to find copies"
    def __init__(self,
        colours_of # Function of a key that was added without colours; returns its `colour_signature`, or None
    ):
        "Create an empty index, which calls `colours_of` at most once per key"
        self.colours_of,self.keys,self.colours,self.words = colours_of,[],[],np.empty((3, 1024), 'uint64')
    def __len__(self): return len(self.keys)
    def add(self,
        key, # Identifies the image; `find` returns it
        phash:str, # From `perceptual_hash`
        colours:np.ndarray=None # From `colour_signature`; default: `colours_of(key)` when needed
    ):
        "Add an image"
        n = len(self)
        if n == self.words.shape[1]: self.words = np.concatenate([self.words, np.empty_like(self.words)], 1)
        self.words[:, n] = _words([phash_bits(phash)])[:, 0]
        self.keys.append(key)
        self.colours.append(colours)
    def find(self,
        phash:str, # From `perceptual_hash`
        colours:np.ndarray # From `colour_signature`
    ): # A key, or None
        "Return the key of the nearest copy of the image with `phash` and `colours`"
        near,far = _near(self.words[:, :len(self)], _words([phash_bits(phash)])[:, 0])
        for k in np.argsort(far, kind='stable'):
            i = near[k]
            if self.colours[i] is None: self.colours[i] = self.colours_of(self.keys[i])
            known = self.colours[i]
            if far[k] <= CLOSE//3 if known is None else (known*colours).sum() >= _ALIKE: return self.keys[i]

def image_quality(
    img:Image.Image # RGB
) -> dict: # size (width, height); sharpness, contrast; brightness and brightest, 0 to 255; bits (144), colours (192)
    "Measure size, sharpness, contrast and brightness of `img`, its perceptual hash and its colour signature"
    grey = img.convert('L')
    grey.thumbnail((256, 256), reducing_gap=2)
    a,shares = np.asarray(grey, 'float32'),np.cumsum(grey.histogram())/(grey.width*grey.height)
    laplacian = 4*a[1:-1, 1:-1] - a[:-2, 1:-1] - a[2:, 1:-1] - a[1:-1, :-2] - a[1:-1, 2:]
    return dict(size=img.size, sharpness=float(laplacian.var()) if laplacian.size else 0., contrast=float(a.std()),
                brightness=float(a.mean()), brightest=int(np.searchsorted(shares, .99)),
                bits=phash_bits(perceptual_hash(img)), colours=colour_signature(img).ravel())
