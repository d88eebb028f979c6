#!/usr/bin/env bash
# onnxruntime's quantize_static with an empty list of nodes to quantize quantizes all of them.
#
# Its documentation says of nodes_to_quantize: "When this list is not None only the nodes in this list are quantized."
# A program that chooses nodes, and finds none, gets all. Seen with onnxruntime 1.32.0, for a convolution and a Relu,
# which is merged into the output of a convolution that is quantized:
#     nodes_to_quantize=None: DequantizeLinear QuantizeLinear DequantizeLinear Conv QuantizeLinear DequantizeLinear
#     nodes_to_quantize=[]: DequantizeLinear QuantizeLinear DequantizeLinear Conv QuantizeLinear DequantizeLinear
#     nodes_to_quantize=['other']: Conv Relu
# The exit status is not 0 if this is no longer so.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2
cd "$dir"
env/bin/python - <<'PYTHON'
import logging, numpy as np, onnx, onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, quantize_static
logging.disable(logging.WARNING)   # it recommends to prepare the model first
print('onnxruntime', onnxruntime.__version__)
class Reader(CalibrationDataReader):
    def __init__(self): self.inputs = iter(np.random.default_rng(0).random((3, 1, 3, 8, 8), 'float32'))
    def get_next(self): return next(({'x': o} for o in self.inputs), None)
nodes = [helper.make_node('Conv', ['x', 'w'], ['c'], name='conv'), helper.make_node('Relu', ['c'], ['y'], name='relu')]
x,y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, o) for k,o in dict(x=[1, 3, 8, 8], y=[1, 4, 6, 6]).items())
weights = numpy_helper.from_array(np.random.default_rng(1).standard_normal((4, 3, 3, 3), 'float32'), 'w')
graph = helper.make_graph(nodes, 'g', [x], [y], [weights])
model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid('', 20)])
seen = []
for chosen in (None, [], ['other']):
    quantize_static(model, 'int8.onnx', Reader(), nodes_to_quantize=chosen)
    seen.append(' '.join(o.op_type for o in onnx.load('int8.onnx').graph.node))
    print(f'nodes_to_quantize={chosen}: {seen[-1]}')
assert seen[0] == seen[1] and 'QuantizeLinear' in seen[1] and seen[2] == 'Conv Relu'
PYTHON
