#!/usr/bin/env bash
# An onnxruntime session made from the bytes of a model keeps them: its weights are in memory twice.
#
# From a path, a session takes as much memory as the weights. From bytes, which a program has that checks or decrypts
# a file first, it takes twice as much for as long as it lives, although the caller keeps no reference: the session
# holds the bytes in its attribute `_model_bytes`, for `set_providers`. Setting it to None frees them. Seen with
# onnxruntime 1.32.0 on Linux, for a matrix of 95 MB:
#     from a path: 105 MB
#     from bytes: 192 MB
#     from bytes, without _model_bytes: 96 MB
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2 psutil==7.2.2
cd "$dir"
env/bin/python - <<'PYTHON'
import gc, numpy as np, onnx, onnxruntime, psutil
from onnx import TensorProto, helper, numpy_helper
from pathlib import Path
print('onnxruntime', onnxruntime.__version__)
def write():
    info = [helper.make_tensor_value_info(o, TensorProto.FLOAT, [1, 5000]) for o in 'xy']
    weights = numpy_helper.from_array(np.random.default_rng(0).random((5000, 5000), 'float32'), 'w')
    graph = helper.make_graph([helper.make_node('MatMul', ['x', 'w'], ['y'])], 'g', info[:1], info[1:], [weights])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid('', 20)]), 'model.onnx')
def used():
    gc.collect()
    return psutil.Process().memory_info().rss
write()
start,seen = used(),{}
session = onnxruntime.InferenceSession('model.onnx')
seen['from a path'] = used() - start
del session
start = used()
session = onnxruntime.InferenceSession(Path('model.onnx').read_bytes())
seen['from bytes'] = used() - start
session._model_bytes = None
seen['from bytes, without _model_bytes'] = used() - start
for k,v in seen.items(): print(f'{k}: {v/2**20:.0f} MB')
size = Path('model.onnx').stat().st_size
assert [round(o/size) for o in seen.values()] == [1, 2, 1]
PYTHON
