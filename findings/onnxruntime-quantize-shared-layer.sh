#!/usr/bin/env bash
# In the format QOperator, quantize_static adds a wrong bias where a layer is used for a second time.
#
# A network may use one layer, weights and bias, in several places, as detectors do on feature maps of several sizes.
# In 8 bits, a bias is stored in units that depend on the range of the layer's input, so each place needs its own. The
# tool makes one, in the units of the first place. In the format QDQ, the default, each place has its own. Seen with
# onnxruntime 1.32.0, for the layer 1*x + 1, used first for numbers up to 1, then for numbers up to 100:
#     first, of [-1, 0, 1]: float [0, 1, 2] QDQ [0, 1, 2] QOperator [0, 1, 2]
#     second, of [-100, 0, 100]: float [-99, 1, 101] QDQ [-99, 1, 100] QOperator [-1, 100, 101]
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2
cd "$dir"
env/bin/python - <<'PYTHON'
import logging, numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
logging.disable(logging.WARNING)
print('onnxruntime', onnxruntime.__version__)
first = np.arange(-1, 2, dtype='float32').reshape(1, 1, 1, 3)
inputs = dict(a=first, b=100*first)
class Images(CalibrationDataReader):
    def __init__(self): self.left = [inputs]
    def get_next(self): return self.left.pop() if self.left else None
nodes = [helper.make_node('Conv', [x, 'w', 'bias'], [y], y) for x,y in (('a', 'first'), ('b', 'second'))]
a,b,*outputs = (helper.make_tensor_value_info(o, TensorProto.FLOAT, [1, 1, 1, 3]) for o in 'a b first second'.split())
arrays = [numpy_helper.from_array(np.ones(o, 'float32'), k) for k,o in dict(w=(1, 1, 1, 1), bias=1).items()]
graph = helper.make_graph(nodes, 'g', [a, b], outputs, arrays)
onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid('', 20)]), 'float.onnx')
for o in ('QDQ', 'QOperator'): quantize_static('float.onnx', f'{o}.onnx', Images(), quant_format=QuantFormat[o])
seen = {}
for k in ('float', 'QDQ', 'QOperator'):
    for name,y in zip(('first', 'second'), onnxruntime.InferenceSession(f'{k}.onnx').run(None, inputs)):
        seen[name, k] = y.ravel().round().astype(int).tolist()
for name,x in (('first', inputs['a']), ('second', inputs['b'])):
    print(f'{name}, of {x.ravel().astype(int).tolist()}:', *(f'{k} {v}' for (o,k),v in seen.items() if o == name))
def near(k, *right): return np.allclose(seen[k], right, atol=2)
assert all(near(('first', k), 0, 1, 2) for k in ('float', 'QDQ', 'QOperator'))
assert near(('second', 'float'), -99, 1, 101) and near(('second', 'QDQ'), -99, 1, 101)
assert near(('second', 'QOperator'), -1, 100, 101)
PYTHON
