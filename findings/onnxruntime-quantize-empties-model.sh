#!/usr/bin/env bash
# quantize_static takes the weights out of the model object that it is given.
#
# The first argument may be a path or a ModelProto. One would expect the object to be the same afterwards, in order to
# save it or to quantize it in another way; quantize_dynamic leaves it alone. But tensors of 1024 bytes and more become
# references to a file in a temporary folder, which is deleted. Saving the model then raises no error, the file just
# cannot be opened, and a second call fails. Seen with onnxruntime 1.32.0 and onnx 1.23.2, for a network of one layer:
#     8 channels: 972 bytes before, 972 bytes after; saved, opened; quantized again
#     16 channels: 1836 bytes before, 190 bytes after; saved, Fail when opened; ValidationError when quantized again
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
logging.disable(logging.WARNING)
print('onnxruntime', onnxruntime.__version__, 'onnx', onnx.__version__)
class Images(CalibrationDataReader):
    def __init__(self): self.left = [{'x': np.ones((1, 3, 8, 8), 'float32')}]
    def get_next(self): return self.left.pop() if self.left else None
def network(n):
    shapes = dict(x=[1, 3, 8, 8], y=[1, n, 6, 6])
    x,y = (helper.make_tensor_value_info(k, TensorProto.FLOAT, o) for k,o in shapes.items())
    w = numpy_helper.from_array(np.random.default_rng(0).random((n, 3, 3, 3), 'float32'), 'w')
    return helper.make_model(helper.make_graph([helper.make_node('Conv', ['x', 'w'], ['y'])], 'g', [x], [y], [w]),
                             ir_version=10, opset_imports=[helper.make_opsetid('', 20)])
def attempt(verb, do):
    try: do()
    except Exception as e: return f'{type(e).__name__} when {verb}'
    return verb
seen = {}
for n in (8, 16):
    model = network(n)
    before = model.ByteSize()
    quantize_static(model, '8bit.onnx', Images())
    onnx.save(model, 'saved.onnx')
    seen[n] = (before, model.ByteSize(), attempt('opened', lambda: onnxruntime.InferenceSession('saved.onnx')),
               attempt('quantized again', lambda: quantize_static(model, '8bit.onnx', Images())))
    print(f'{n} channels: {seen[n][0]} bytes before, {seen[n][1]} bytes after; saved, {seen[n][2]}; {seen[n][3]}')
assert seen[8][0] == seen[8][1] and seen[8][2:] == ('opened', 'quantized again')
assert seen[16][1] < seen[16][0] - 1024 and all('when' in o for o in seen[16][2:])
PYTHON
