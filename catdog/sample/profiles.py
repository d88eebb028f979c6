"""Colour profiles by calculation, to try with whether colours come out right"""

import struct

import numpy as np

D50 = np.array([.9642, 1, .8249])
_BRADFORD = np.array([[.8951, .2664, -.1614], [-.7502, 1.7135, .0367], [.0389, -.0685, 1.0296]])

def to_xyz(
    red:tuple, # x and y of the primary
    green:tuple, # As `red`
    blue:tuple, # As `red`
    white:tuple=(.3127, .3290) # x and y; D65 by default
) -> np.ndarray: # Shape (3,3): XYZ = this @ RGB, for a white of D50
    "The matrix from linear RGB of these primaries to XYZ"
    def _light(x, y): return np.array([x/y, 1, (1 - x - y)/y])
    primaries = np.stack([_light(*o) for o in (red, green, blue)], 1)
    matrix = primaries*np.linalg.solve(primaries, _light(*white))
    adapt = np.diag(_BRADFORD @ D50/(_BRADFORD @ _light(*white)))
    return np.linalg.inv(_BRADFORD) @ adapt @ _BRADFORD @ matrix

SRGB = to_xyz((.64, .33), (.3, .6), (.15, .06))
DISPLAY_P3 = to_xyz((.68, .32), (.265, .69), (.15, .06))
ADOBE_RGB = to_xyz((.64, .33), (.21, .71), (.15, .06))
REC2020 = to_xyz((.708, .292), (.17, .797), (.131, .046))
PROPHOTO = to_xyz((.7347, .2653), (.1596, .8404), (.0366, .0001), (.3457, .3585))

def linear(
    values:np.ndarray, # 0 to 1, as stored
    curve:float|str # An exponent, or 'srgb'
) -> np.ndarray: # 0 to 1, amounts of light
    "The light that `values` mean by `curve`"
    values = np.asarray(values, float)
    if curve != 'srgb': return values**curve
    return np.where(values <= .04045, values/12.92, ((values + .055)/1.055)**2.4)

def srgb_of(
    xyz:np.ndarray # Light, shape (...,3)
) -> np.ndarray: # Of the same shape, 0 to 255, not rounded
    "The sRGB pixels that show `xyz`, as near as they can"
    light = (xyz @ np.linalg.inv(SRGB).T).clip(0, 1)
    return 255*np.where(light <= .0031308, light*12.92, 1.055*light**(1/2.4) - .055)

def _fixed(*numbers): return b''.join(struct.pack('>i', round(o*65_536)) for o in numbers)
def _xyz(xyz): return b'XYZ \0\0\0\0' + _fixed(*xyz)

def _profile(space, kind, connection, entries):
    "An ICC profile (version 2.4) of `kind` for colours of `space`, with the bytes of `entries`"
    entries = {'desc': b'desc\0\0\0\0\0\0\0\5made\0' + bytes(79), 'cprt': b'text\0\0\0\0none\0', 'wtpt': _xyz(D50),
               **entries}
    table,data,start = struct.pack('>I', len(entries)),b'',132 + 12*len(entries)
    for name,o in entries.items():
        table += name.encode() + struct.pack('>II', start + len(data), len(o))
        data += o + bytes(-len(o)%4)
    head = struct.pack('>I4x4s4s4s4s6H4s28x', 128 + len(table + data), b'\2\x40\0\0',
                       *(o.encode() for o in (kind, space, connection)), 2024, 1, 1, 0, 0, 0, b'acsp')
    return head + _fixed(*D50) + bytes(48) + table + data

def _curve(curve):
    if curve == 'srgb': return b'para\0\0\0\0\0\3\0\0' + _fixed(2.4, 1/1.055, .055/1.055, 1/12.92, .04045)
    return b'curv\0\0\0\0' + struct.pack('>IH', 1, round(curve*256))

def matrix_profile(
    matrix:np.ndarray, # From `to_xyz`
    curve:float|str # As for `linear`; an exponent is rounded to 1/256
) -> bytes: # An ICC profile
    "The profile of a screen with the primaries of `matrix` and with `curve`"
    names = [f'{o}{what}' for what in ('XYZ', 'TRC') for o in 'rgb']
    return _profile('RGB ', 'mntr', 'XYZ ', dict(zip(names, [*map(_xyz, matrix.T), *[_curve(curve)]*3])))

def grey_profile(
    curve:float|str # As for `matrix_profile`
) -> bytes: # An ICC profile
    "The profile of grey pixels with `curve`"
    return _profile('GRAY', 'mntr', 'XYZ ', {'kTRC': _curve(curve)})

def table_profile(
    space:str, # 'CMYK' or 'RGB '
    xyz_of, # Called with an array of shape (n,4) or (n,3), 0 to 1; returns the light, shape (n,3)
    steps:int=17 # Of each ink or light
) -> bytes: # An ICC profile
    "The profile of a device that makes `xyz_of` out of its numbers"
    n = len(space.strip())
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, steps)]*n, indexing='ij'), -1).reshape(-1, n)
    f = xyz_of(grid)/D50
    f = np.where(f > 216/24_389, np.cbrt(f), (24_389/27*f + 16)/116)
    lab = np.stack([(116*f[:, 1] - 16)*652.8, (500*(f[:, 0] - f[:, 1]) + 128)*256,
                    (200*(f[:, 1] - f[:, 2]) + 128)*256], 1)
    straight = struct.pack('>HH', 0, 65_535)
    table = b'mft2\0\0\0\0' + bytes([n, 3, steps, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack('>HH', 2, 2)
    table += straight*n + lab.round().clip(0, 65_535).astype('>u2').tobytes() + straight*3
    return _profile(space, 'prtr' if n == 4 else 'scnr', 'Lab ', {'A2B0': table})
