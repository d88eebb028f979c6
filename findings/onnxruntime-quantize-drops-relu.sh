#!/usr/bin/env bash
# In the format QOperator, quantize_static drops a ReLU if something else reads its input, too: a shortcut around it.
#
# An 8-bit layer whose numbers begin at 0 needs no ReLU behind it, so the tool sets the range of the layer to that of
# the ReLU and removes the ReLU. If its input has another reader, which needs the negative numbers, the range is left as
# it is, but the ReLU is removed all the same. In the format QDQ, the default, it stays. Seen with onnxruntime 1.32.0,
# for the network c = conv(x), r = relu(c), y = the maximum of c, where c is x itself:
#     x:              [-2.0, -1.0, 0.0, 1.0, 2.0]
#     r:              [0.0, 0.0, 0.0, 1.0, 2.0]
#     r in QDQ:       [0.0, 0.0, 0.0, 1.0, 2.0]
#     r in QOperator: [-2.0, -1.0, 0.0, 1.0, 2.0]
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
x = np.arange(-2, 3, dtype='float32').reshape(1, 1, 1, 5)
class Images(CalibrationDataReader):
    def __init__(self): self.left = [{'x': x}]
    def get_next(self): return self.left.pop() if self.left else None
nodes = [helper.make_node('Conv', ['x', 'w'], ['c'], 'conv'), helper.make_node('Relu', ['c'], ['r'], 'relu'),
         helper.make_node('GlobalMaxPool', ['c'], ['y'], 'pool')]
x_info,r,y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, [1, 1, 1, n]) for k,n in dict(x=5, r=5, y=1).items())
w = numpy_helper.from_array(np.ones((1, 1, 1, 1), 'float32'), 'w')
graph = helper.make_graph(nodes, 'g', [x_info], [r, y], [w])
onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid('', 20)]), 'r.onnx')
for o in ('QDQ', 'QOperator'): quantize_static('r.onnx', f'r in {o}.onnx', Images(), quant_format=QuantFormat[o])
seen = {}
for name in ('r', 'r in QDQ', 'r in QOperator'):
    found, = onnxruntime.InferenceSession(f'{name}.onnx').run(['r'], {'x': x})
    seen[name] = (found.ravel().round(1) + 0).tolist()
print(f'x: {x.ravel().tolist()}', *(f'{k}: {v}' for k,v in seen.items()), sep='\n')
def near(a, b): return np.allclose(a, b, atol=.15)
right = [0, 0, 0, 1, 2]
assert near(seen['r'], right) and near(seen['r in QDQ'], right) and near(seen['r in QOperator'], x.ravel())
PYTHON
