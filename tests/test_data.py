"`get_dls`: the batches of a folder"
import pytest
from fastcore.xtras import mkdir

@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
    "40 drawings each of cats and dogs"
    from catdog.core.drawing import draw
    folder = tmp_path_factory.mktemp('drawings')
    for label in ('cat', 'dog'):
        for i in range(40): draw(label, i, (160, 120)).save(mkdir(folder/label, exist_ok=True)/f'{i}.png')
    return folder

def test_batches_have_the_shape_and_the_labels_that_were_asked_for(drawings):
    from catdog.data import get_dls
    dls = get_dls(drawings, bs=32, num_workers=0)
    x,y = dls.one_batch()
    assert x.shape == (32, 3, 224, 224) and y.shape == (32,)
    assert list(dls.vocab) == ['cat', 'dog']
    assert get_dls(drawings, size=64, bs=8, num_workers=0).one_batch()[0].shape == (8, 3, 64, 64)

def test_the_same_fifth_is_for_validation_each_time(drawings):
    from catdog.data import get_dls
    dls = get_dls(drawings, bs=32)
    assert dls.valid_ds.items == get_dls(drawings).valid_ds.items != get_dls(drawings, seed=1).valid_ds.items
    assert not set(dls.valid_ds.items) & set(dls.train_ds.items)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (64, 16)

def test_a_small_folder_still_gives_a_batch(drawings):
    from catdog.data import get_dls
    assert len(list(get_dls(drawings, size=64, bs=10_000, num_workers=0).train)) == 1
