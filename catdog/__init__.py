"""Modules:

- `catdog.core.errors`: The errors that catdog raises, and the decorator that makes a function a command
- `catdog.core.model_file`: Model files: open one from an untrusted source, check its metadata, prepare images as it expects them, write one
- `catdog.dataset.journal`: Move images of a data set to other labels or out of it, and undo that: a journal records every move
- `catdog.deploy.batch`: Predictions for many images: rows for Python, lines for a terminal, a resumable CSV or Parquet file, a bucket on Dask
- `catdog.deploy.voila`: Voilà's server for the widget app: its settings, the culling of unused kernels, and the command's process
- `catdog.learn.card`: The metadata of a model, and the model card made from it"""

__version__ = "0.1.0"

import logging, os, warnings
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')   # ONNX Runtime would report its use, and keep a file in the home folder
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')   # PyTorch's threads would spin: ten times slower if cores are busy
# A warning of fastai about its own code, which users of catdog cannot act on
warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning)
# matplotlib's notice that it uses a temporary folder because the home folder is not writable
logging.getLogger('matplotlib').addFilter(lambda o: 'cache directory' not in o.msg and 'mkdir -p' not in o.msg)
