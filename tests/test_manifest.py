"A manifest as a killed run or somebody else left it. What fits in a cell is in nbs/web/manifest.ipynb."
import json

from catdog.web.manifest import read_manifest

def test_torn_and_odd_lines_of_a_manifest(tmp_path):
    row = dict(label='cat', file='cat/1.jpg', status='ok', reason='', url='https://a/1')
    good = json.dumps(row).encode()
    (tmp_path/'manifest.jsonl').write_bytes(b'\n'.join([good, b'17', b'{"label": 3}', b'\xff', b'[', good[:40]]))
    assert read_manifest(tmp_path).url.tolist() == ['https://a/1']
    (tmp_path/'manifest.jsonl').write_text('')
    assert len(read_manifest(tmp_path)) == 0
