"Manifests that are incomplete, invalid or large."
import json, time

from catdog.dataset.manifest import Manifest, read_manifest

def test_incomplete_and_invalid_lines_of_a_manifest(tmp_path):
    row = dict(label='cat', file='cat/1.jpg', status='ok', reason='', url='https://a/1')
    good = json.dumps(row).encode()
    odd = [b'17', b'{"label": 3}', b'\xff', b'[', b'['*10**5]
    (tmp_path/'manifest.jsonl').write_bytes(b'\n'.join([good, *odd, good[:40]]))
    assert read_manifest(tmp_path).url.tolist() == ['https://a/1']
    (tmp_path/'manifest.jsonl').write_text('')
    assert len(read_manifest(tmp_path)) == 0

def test_manifest_of_100_000_rows_opens_in_seconds(tmp_path):
    row = dict(label='cat', status='ok', reason='', title='A cat on a wall', page_url='https://example.org/cats',
               width=1024, height=768, license='CC BY 4.0', creator='Ann', engine='openverse',
               term='cat', phash='0'*36,
               area=150_000, copy_of=None)
    (tmp_path/'cat').mkdir()
    (tmp_path/'cat'/'00000007.jpg').touch()
    with (tmp_path/'manifest.jsonl').open('w') as f:
        for i in range(100_000):
            f.write(json.dumps(dict(row, file=f'cat/{i:08}.jpg', url=f'https://example.org/{i}.jpg')) + '\n')
    start = time.process_time()   # unaffected by other processes
    manifest = Manifest(tmp_path)
    seconds = time.process_time() - start
    assert len(manifest.rows) == 100_000 and seconds < 5
    start = time.process_time()
    assert (read_manifest(tmp_path).status == 'ok').sum() == 1 and time.process_time() - start < 5
