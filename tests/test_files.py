"Which files are images: the same list for every reader, whatever the machine's tables say."
import os, subprocess, sys
from pathlib import Path

import pytest

from catdog.sample.draw import draw
from catdog.core.files import IMAGE_SUFFIXES, content_id, find_images, walk_files
from catdog.core.images import jpeg_bytes

def touch(folder, *names):
    for o in names:
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        (folder/o).touch()

def test_every_ending_that_pillow_has_for_our_formats_is_in_the_list():
    from PIL import Image
    from catdog.core.images import FORMATS
    Image.init()
    theirs = {k for k,v in Image.registered_extensions().items() if v in {*FORMATS, 'MPO', 'DIB'}}
    assert theirs <= set(IMAGE_SUFFIXES)
    assert {'.jfif', '.jpe', '.webp'} <= set(IMAGE_SUFFIXES)

WITHOUT_MIME_TYPES = '''
import mimetypes, sys
mimetypes.knownfiles = []   # as on a machine that has no mime.types, with a Python that knows no .webp
mimetypes.init()
for o in ('.webp', '.avif', '.jfif'): mimetypes.types_map.pop(o, None)
from catdog.learn.loaders import image_files
from catdog.dataset.split import split_files
print(len(image_files(sys.argv[1])), sum(split_files(sys.argv[1]).folder.counts().values()))
'''

def test_all_endings_are_read_where_the_machine_has_no_table_of_mime_types(tmp_path):
    endings = '.jfif .jpe .webp .JPG .avif .bmp .tif'.split()
    for label in ('cat', 'dog'):
        for i,o in enumerate(endings):
            (tmp_path/label).mkdir(exist_ok=True)
            kind = dict(jfif='jpeg', jpe='jpeg', jpg='jpeg', tif='tiff').get(o[1:].lower(), o[1:])
            draw(label, i, (90, 70)).save(tmp_path/label/f'{i}{o}', kind)
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', WITHOUT_MIME_TYPES, str(tmp_path)],
                          capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ['14', '14'], done.stderr

def test_links_to_other_disks_are_followed_and_circles_are_not(tmp_path):
    touch(tmp_path, 'elsewhere/1.jpg', 'data/dog/2.jpg')
    (tmp_path/'data'/'cat').symlink_to(tmp_path/'elsewhere')
    (tmp_path/'data'/'again').symlink_to(tmp_path/'elsewhere')   # the same folder twice is no circle
    (tmp_path/'data'/'dog'/'up').symlink_to(tmp_path/'data')
    (tmp_path/'elsewhere'/'over').symlink_to(tmp_path/'data'/'dog')
    found = [o.relative_to(tmp_path/'data').as_posix() for o in walk_files(tmp_path/'data')]
    assert {'cat/1.jpg', 'again/1.jpg', 'dog/2.jpg'} <= set(found) and len(found) < 50
    assert found == sorted(found, key=lambda o: o.split('/'))

def test_what_is_no_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path/'pipe.jpg')   # whoever opened it would wait for ever
    touch(tmp_path, '1.jpg', 'folder.jpg/2.png')
    (tmp_path/'gone.jpg').symlink_to('nowhere')
    assert [o.name for o in find_images([tmp_path])] == ['1.jpg', '2.png', 'gone.jpg']

def test_a_folder_that_cannot_be_read_is_passed_over_or_told(tmp_path, monkeypatch):
    touch(tmp_path, 'cat/1.jpg', 'dog/2.jpg')
    scan = os.scandir
    def _scan(folder):
        if Path(folder).name == 'dog': raise PermissionError(13, 'Permission denied', str(folder))
        return scan(folder)
    monkeypatch.setattr(os, 'scandir', _scan)
    told = []
    assert [o.name for o in walk_files(tmp_path, told.append)] == ['1.jpg']
    assert [o.filename for o in told] == [str(tmp_path/'dog')]
    assert [o.name for o in find_images([tmp_path])] == ['1.jpg']

def test_a_content_has_one_id_wherever_it_lies(tmp_path):
    data = jpeg_bytes(draw('cat', 1, (60, 60)))
    for o in ('a.jpg', 'b.jpg'): (tmp_path/o).write_bytes(data)
    assert content_id(tmp_path/'a.jpg') == content_id(tmp_path/'b.jpg') == content_id(data) != content_id(data + b' ')
    assert len(content_id(data)) == 16 and int(content_id(data), 16) >= 0
