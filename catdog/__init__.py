__version__ = "0.1.0"

import warnings
# fastai's, about itself, while it is imported: nothing that who uses it can do anything about
warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning)
