"The cleaner: killed while it applies choices; instead of fastai's; and in a browser, in Voilà and JupyterLab."
import base64, json, os, re, shutil, signal, socket, sys, time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event

import nbformat, psutil, pytest
import pandas as pd
from clean_helpers import JOURNAL, drawings, images, recorded_threads, state, unsorted
from fastai.vision.all import ImageDataLoaders, Resize, get_image_files
from network_helpers import free_port, kernels, until, violations
from PIL import Image
from playwright.sync_api import expect

from catdog.clean import cleaner as cleaner_module
from catdog.clean.cleaner import Cleaner
from catdog.clean.interpret import predictions, suspects
from catdog.core.errors import DataError
from catdog.core.images import open_image
from catdog.data import get_dls
from catdog.dataset.journal import apply_choices
from catdog.learn.backbones import get_learner
from catdog.learn.calibration import confusion
from catdog.sample.draw import draw

def learner(data, size=32): return get_learner(get_dls(data, size=size, bs=8, num_workers=0))

def learner_by(func, path, label, **kw):
    "A learner for the images in `path`, labelled by the function `label`"
    return get_learner(func(path, get_image_files(path), label, valid_pct=.2, seed=1, bs=8, num_workers=0,
                            item_tfms=Resize(32), **kw))

def test_cleaner_killed_while_it_applies(tmp_path):
    "A new `Cleaner`, as after a restart, finishes what was begun, and undoes it"
    data = drawings(tmp_path/'data', 30)
    rows = (dict(label=o.parent.name, file=o.relative_to(data).as_posix(), status='ok') for o in data.rglob('*.jpg'))
    (data/'manifest.jsonl').write_text(''.join(json.dumps(o, separators=(' , ', ' :')) + '\n' for o in rows))
    learn = learner(data)
    start,everything = state(data),images(data)
    cleaner = Cleaner(learn, max_n=4)   # its choices are there in each process that is forked from this one
    for i,f in enumerate(cleaner.table.file): cleaner.iw.choose(f, ('<Delete>', 'cat', 'dog')[i%3])
    files = [cleaner.fns[i] for i in cleaner.delete()] + [cleaner.fns[i] for i,_ in cleaner.change()]

    def left(): return sum(o.exists() for o in files)

    def killed_with(n):
        "Apply in a new process, and kill it once at most `n` images are left to move; return how many are left"
        pid = os.fork()
        if not pid:
            try: cleaner.apply()
            finally: os._exit(0)
        while left() > n: pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert images(data) == everything
        return left()

    def finish_and_undo():
        after = Cleaner(learn, max_n=4)   # it knows no choices but those in the journal
        after.apply()
        applied = state(data)
        after.undo()
        assert state(data) == start and after.bt_undo.disabled
        (data/JOURNAL).unlink()
        return applied

    killed_with(0)
    applied,in_the_middle = finish_and_undo(),0
    assert len(files) == len(set(start) - set(applied)) > 25
    while in_the_middle < 3:
        in_the_middle += killed_with(len(files)*(3 - in_the_middle)//4) > 0
        assert finish_and_undo() == applied

def count(path): return Counter(o.relative_to(path).parent.as_posix() for o in path.rglob('*.jpg'))

def test_the_two_lines_of_the_course_work(tmp_path):
    "As with fastai's cleaner, but for all choices"
    data = drawings(tmp_path/'data', 20)
    for o in (data/'dog').iterdir(): o.rename(o.with_name(f'dog {o.name}'))   # no name is taken in the other folder
    learn = learner(data)
    cleaner = Cleaner(learn, max_n=12)
    for card,choice in zip(cleaner.iw.widget.children, ('<Delete>', 'dog', '<Delete>', 'dog')):
        card.children[1].value = choice
    delete,change = set(cleaner.fns[0:4:2]),set(cleaner.fns[1:4:2])
    cleaner.dd_cats.value = 'dog'
    cleaner.iw.widget.children[0].children[1].value = 'cat'
    change.add(cleaner.fns[0])
    total,shown = count(data),len(cleaner.iw.view)
    assert min(cleaner.delete()) >= shown   # choices in other categories come after the shown images
    for idx in cleaner.delete(): cleaner.fns[idx].unlink()
    for idx,cat in cleaner.change(): shutil.move(str(cleaner.fns[idx]), data/cat)
    assert count(data) == total + Counter(dog=1) - Counter(cat=3)   # two out, two to the dogs, one to the cats
    assert not any(f.exists() for f in delete | change)
    assert (cleaner.delete(), cleaner.change()) == ([], [])   # done is done: the lines can be run again
    cleaner.bt_apply.click()   # Apply says so
    assert cleaner.message.value.startswith('Moved 0 of 5 images.') and 'is no longer there' in cleaner.message.value
    # images removed before the cleaner opened are on no page: they are restored without a choice
    file = cleaner.fns[5]
    apply_choices(data, {file: '<Delete>'})
    later = Cleaner(learn, max_n=12)
    later.undo()
    assert file.exists()
    assert (later.tally.value, later.delete(), later.apply()) == ('Nothing is chosen', [], [])

def test_pages_and_large_images(tmp_path):
    cleaner,files = Cleaner(learner(drawings(tmp_path/'data', 20)), max_n=6),[]
    for page in range(cleaner.iw.n_pages):   # every image of a category is on one of the pages
        cleaner.iw.show(page)
        files += cleaner.iw.shown
    assert files == cleaner.iw.view
    assert cleaner.iw.n_pages > 1 and cleaner.bt_next.disabled and not cleaner.bt_back.disabled
    cleaner.toggle_large(files[0])
    assert cleaner.large.layout.display == 'flex'
    large = base64.b64decode(re.search(r'base64,([^"]+)', cleaner.large_image.value)[1])
    assert open_image(large).size == Image.open(files[0]).size
    cleaner.shrink()
    cleaner.iw.show(0)
    card,displays = cleaner.iw.cards[0],[]
    for _ in range(3):   # the key that opens closes; another image takes the place of the first
        card.zoom.click()
        displays.append(cleaner.large.layout.display)
        if len(displays) == 2: cleaner.toggle_large(cleaner.iw.shown[1])
    assert displays == ['flex', 'none', 'flex']
    late,file = cleaner.iw.cards[2],cleaner.iw.shown[2]   # a click that arrives after the page was turned
    cleaner.iw.show(1)
    late.menu.value = '<Delete>'
    assert cleaner.iw.choices[file] == '<Delete>' and cleaner.iw.shown[2] not in cleaner.iw.choices

def pets(folder, n=14):
    "As in fastai's first lesson: one folder, in which cats have capitalised names; two have the wrong name"
    folder.mkdir(parents=True)
    for label,other,wrong in (('Cat', 'dog', 1), ('dog', 'cat', 1)):
        for i in range(n):
            draw(other if i < wrong else label.lower(), i, (64, 64)).save(folder/f'{label}_{i}.jpg', quality=95)
    return folder

def is_cat(name): return name[0].isupper()

def test_labels_that_are_not_folders(tmp_path):
    "The cleaner reports it when it opens; <Delete> and undo work"
    path = pets(tmp_path/'pets'/'images')
    learn = learner_by(ImageDataLoaders.from_name_func, path, is_cat)
    start,cleaner = state(path),Cleaner(learn, suspects=suspects(learn), max_n=30)
    assert cleaner.message.value.startswith('The 28 images are not in folders that are their labels')
    for view,category in (('Worst first', True), ('All images', True), ('All images', False)):
        cleaner.dd_view.value,cleaner.dd_cats.value = view,category
        assert cleaner.iw.shown
        for card in cleaner.iw.cards[:len(cleaner.iw.shown)]:
            assert card.menu.options == ('<Keep>', '<Delete>') and 'label: <b>' in card.text.value
        if view == 'All images': assert {is_cat(o.name) for o in cleaner.iw.shown} == {category}
    gone = cleaner.iw.shown[:2]
    for o in gone: cleaner.iw.choose(o, '<Delete>')
    cleaner.bt_apply.click()
    assert cleaner.message.value == 'Moved 2 images.' and not any(o.exists() for o in gone)
    assert not set(gone) & set(cleaner.iw.view)
    cleaner.bt_undo.click()
    assert state(path) == start and set(gone) < set(cleaner.iw.view)
    assert [is_cat(o.name) for o in cleaner.table.file] == cleaner.table.label.tolist()   # a label is no folder's name

def test_some_labels_are_not_folders(tmp_path):
    "A list corrects two labels; each menu offers what is possible for its image"
    data = drawings(tmp_path/'data', 10)
    corrected = {data/'cat'/'00.jpg': 'dog', data/'dog'/'00.jpg': 'cat'}
    label = lambda o: corrected.get(o, o.parent.name)
    cleaner = Cleaner(learner_by(ImageDataLoaders.from_path_func, data, label), max_n=30)
    assert cleaner.message.value.startswith('2 of the 20 images are not in folders that are their labels')
    for cleaner.dd_ds.value in ('Train', 'Valid'):
        for cleaner.dd_cats.value in ('cat', 'dog'):
            for card in cleaner.iw.cards[:len(cleaner.iw.shown)]:
                assert card.menu.options == ('<Keep>', '<Delete>', *(() if card.file in corrected else ('cat', 'dog')))
    file = next(o for o in data.rglob('*.jpg') if o not in corrected)
    other = {'cat': 'dog', 'dog': 'cat'}[file.parent.name]
    for o in (file, *corrected): cleaner.iw.choose(o, other if o == file else '<Delete>')
    assert len([o for o in cleaner.apply() if o.to]) == 3 and (data/other).is_dir()
    t = cleaner.table.set_index('file')
    assert t.label[data/other/file.name] == other

def test_a_split_data_set_with_folders_below_the_labels(tmp_path):
    "The label is the folder below train or test, at any depth; an image keeps its part and its place"
    data = tmp_path/'data'
    for part,n in (('train', 10), ('test', 3)): drawings(data/part, n)
    (data/'test'/'cat'/'indoor').mkdir()
    file = (data/'test'/'cat'/'02.jpg').rename(data/'test'/'cat'/'indoor'/'02.jpg')
    cleaner = Cleaner(learner(data), max_n=30)
    assert (cleaner.message.value, cleaner.dd_ds.options) == ('', ('Train', 'Valid', 'Test'))
    cleaner.dd_ds.value = 'Test'
    assert {o.parent for o in cleaner.iw.shown} == {data/'test'/'cat', data/'test'/'cat'/'indoor'}
    cleaner.iw.cards[cleaner.iw.shown.index(file)].menu.value = 'dog'
    cleaner.bt_apply.click()
    moved = data/'test'/'dog'/'indoor'/'02.jpg'
    assert moved.exists() and cleaner.message.value == 'Moved 1 image.' and moved not in cleaner.iw.shown
    cleaner.dd_cats.value = 'dog'
    assert moved in cleaner.iw.shown
    cleaner.bt_undo.click()
    assert file.exists() and cleaner.iw.wanted == {file: 'dog'} and cleaner.tally.value.startswith('Chosen: 1 to dog')

def test_data_loaders_from_a_table_are_refused(tmp_path):
    data = drawings(tmp_path/'data', 4)
    rows = pd.DataFrame([(o.relative_to(data).as_posix(), o.parent.name) for o in sorted(data.rglob('*.jpg'))])
    dls = ImageDataLoaders.from_df(rows, data, valid_pct=.2, bs=4, num_workers=0, item_tfms=Resize(32))
    with pytest.raises(DataError, match='made from a table'): Cleaner(get_learner(dls))

def test_images_outside_the_folder_are_refused(tmp_path):
    "Data loaders whose path is another folder: nothing could be moved, which is reported when the cleaner opens"
    path = pets(tmp_path/'pets')
    dls = ImageDataLoaders.from_path_func(tmp_path/'models', get_image_files(path), lambda o: is_cat(o.name),
                                          valid_pct=.2, bs=8, num_workers=0, item_tfms=Resize(32))
    cleaner = Cleaner(get_learner(dls))
    assert f'28 images are not in {tmp_path/"models"}, the folder of the data loaders' in cleaner.message.value
    assert {o.menu.options for o in cleaner.iw.cards} == {('<Keep>',)}

def test_it_learns_from_each_page(tmp_path):
    "The suspects are listed anew after a page, without those that were answered; a line says what it did"
    data = drawings(tmp_path/'data', 24)
    wrong,learn = {data/'cat'/'00.jpg': 'dog', data/'dog'/'00.jpg': 'cat', data/'dog'/'01.jpg': 'cat'},learner(data, 64)
    worst = suspects(learn)
    cleaner = Cleaner(learn, suspects=worst, max_n=4)
    seen,validated = [],set(map(Path, learn.dls.valid_ds.items)) & set(wrong)
    for _ in range(6):
        if {*cleaner.iw.choices} >= {*cleaner.iw.shown}: break   # there are no more suspects
        first,answered = cleaner.iw.shown,{*cleaner.iw.choices}
        assert len(seen) % 4 or not answered & {*first}   # nothing comes back, but a page that was not full is filled up
        for o in first: cleaner.iw.choose(o, wrong.get(o, o.parent.name))
        seen += first
        cleaner.bt_next.click()
        n = len({*seen} & {*wrong})
        assert re.match(rf'{n} corrected; validation error [\d.]+% → [\d.]+% \(95% interval .*\d suspects? left', cleaner.learned.value)
    assert {*seen} >= {*wrong} and set(cleaner.suspects.columns) == set(worst.columns)
    k = len(validated)
    assert not k or f'counting {k} corrected label' in cleaner.learned.value
    cleaner.iw.show(0)
    assert cleaner.iw.shown == seen[:4]   # to change an answer
    said = cleaner.learned.value
    cleaner.bt_apply.click()
    assert cleaner.message.value == 'Moved 3 images.' and cleaner.learned.value == said   # the same labels
    assert not {*cleaner.iw.view} & {*seen}
    cleaner.bt_undo.click()
    assert {*cleaner.iw.shown} >= {*wrong} and cleaner.iw.wanted == wrong   # first, to change one
    assert cleaner.message.value == 'Put back 3 images.'
    cleaner.bt_next.click()
    assert not cleaner.message.value   # of an earlier page
    data.rename(tmp_path/'renamed')
    cleaner.bt_apply.click()
    assert 'there is no such folder' in cleaner.message.value
    (tmp_path/'renamed').rename(data)
    cleaner.bt_apply.click()
    assert cleaner.message.value == 'Moved 3 images.'

def test_no_suspects(tmp_path):
    "None at first, and none that it finds"
    learn = learner(drawings(tmp_path/'data', 12), 64)
    cleaner = Cleaner(learn, suspects=suspects(learn)[:0], max_n=4)
    cleaner._fit = lambda labels: ((0, 4), [])
    cleaner.relearn()
    assert '0 suspects left' in cleaner.learned.value and {'file', 'suggested'} <= {*cleaner.suspects.columns}

def test_learning_in_a_thread(tmp_path, monkeypatch):
    "Where it takes long, choices made meanwhile count, and Apply waits"
    data = drawings(tmp_path/'data', 24)
    learn = learner(data)
    cleaner = Cleaner(learn, suspects=suspects(learn), max_n=4)
    relearn,begun,go_on,threads = cleaner.relearn,Event(),Event(),recorded_threads(monkeypatch)
    def slow():
        begun.set()
        assert go_on.wait(60)
        relearn()
    cleaner.relearn,cleaner.iw.slow = slow,True
    for o in cleaner.iw.shown: cleaner.iw.choose(o, o.parent.name)
    cleaner.bt_next.click()
    assert begun.wait(60) and cleaner.where.value == 'Learning from your answers ...' and cleaner.bt_next.disabled
    file = cleaner.iw.shown[0]
    cleaner.iw.cards[0].menu.value = '<Delete>'
    cleaner.bt_apply.click()
    assert not file.exists()
    go_on.set()
    for o in threads: o.join(60)
    assert not cleaner.iw.working and 'page' in cleaner.where.value and cleaner.learned.value.startswith('1 corrected')
    def fails(): raise DataError('broken')
    cleaner.relearn = fails
    cleaner.iw.choose(cleaner.iw.shown[0], '<Delete>')
    cleaner.bt_next.click()
    threads[-1].join(60)
    assert cleaner.message.value == '<b>broken</b>' and not cleaner.bt_next.disabled

def test_cells_of_the_confusion_matrix(tmp_path):
    "Each shows its images, in the order of their loss; large, with what the network looked at"
    learn = learner(drawings(tmp_path/'data', 20))
    t = predictions(learn)
    t = t[t.dataset == 'Valid']
    counts,shown = confusion(learn),0
    for i,label in enumerate(('cat', 'dog')):
        for j,answer in enumerate(('cat', 'dog')):
            cleaner = Cleaner(learn, pair=(label, answer), max_n=30)
            files = t.file[(t.label == label) & (t.predicted == answer)].tolist()
            assert list(cleaner.iw.view) == files and len(files) == counts[i, j]
            shown += len(files)
    assert shown == len(t)
    cells = [o for o in cleaner.matrix.children if o.has_trait('icon')]
    assert [int(o.description) for o in cells] == counts.ravel().tolist()
    cells[int(counts.argmax())].click()
    assert len(cleaner.iw.view) == counts.max() and 'cd-open' in cells[int(counts.argmax())]._dom_classes
    cleaner.toggle_large(cleaner.iw.shown[0])
    assert cleaner.large_image.value.count('<img') == 2
    with pytest.raises(DataError, match='bird'): Cleaner(learn, pair=('cat', 'bird'))

# The cleaner, in a browser

NOTEBOOK = '''from catdog.data import get_dls
from catdog.review import Cleaner, suspects
from catdog.train import get_learner
learn = get_learner(get_dls('data', size=64, bs=8, num_workers=0))
Cleaner(learn, suspects=suspects(learn), max_n=4)'''

def write_notebook(folder, code):
    "Write `clean.ipynb` with one cell to `folder`"
    kernel = dict(name='python3', display_name='Python 3')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=dict(kernelspec=kernel))
    nbformat.write(notebook, folder/'clean.ipynb')
    return folder

@pytest.fixture
def lab(tmp_path):
    "A folder with images and a notebook that shows a cleaner for them"
    drawings(tmp_path/'data')
    return write_notebook(tmp_path, NOTEBOOK)

@contextmanager
def serving(folder, *args, **env):
    "Run a Jupyter server on `folder`, yield its port, and end what was started"
    port = free_port()
    process = psutil.Popen([str(Path(sys.executable).with_name(args[0])), *args[1:], f'--port={port}'], cwd=folder,
                           env={**os.environ, **env})
    try:
        while process.poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex(('127.0.0.1', port)) == 0: break
            time.sleep(.1)
        yield port
    finally:
        family = [process, *process.children(recursive=True)]
        for o in family:
            with suppress(psutil.NoSuchProcess): o.terminate()
        for o in psutil.wait_procs(family, 20)[1]: o.kill()
        process.wait()

class Cards:
    "The cleaner on `page`, as the user sees it, and the contents of its folder `data`"
    def __init__(self, page, data):
        self.page,self.data,self.start = page,data,state(data)
        self.cards,self.menus = page.locator('.cd-card:visible'),page.locator('.cd-card:visible select')
        self.view,self.category,self.dataset = (page.locator('.cd-top select').nth(i) for i in range(3))
        self.large = page.locator('.cd-large img')

    def button(self, name): return self.page.get_by_role('button', name=name, exact=True)
    def shows(self, text): expect(self.page.get_by_text(text).first).to_be_visible()

    def is_readable(self):
        "axe finds nothing wrong with the cleaner, neither text without contrast"
        assert violations(self.page, within='.jp-OutputArea-output:has(.cd-card)') == []

    def turn(self, what, *args):
        "Do `what`, and wait until the cards are replaced by four others"
        self.cards.evaluate_all('cards => cards.forEach(o => o.dataset.before = "")')
        what(*args)
        expect(self.page.locator('.cd-card[data-before]')).to_have_count(0)
        expect(self.cards).to_have_count(4)

    def choose(self, i, what):
        "Choose `what` for card number `i`, or accept that suggestion"
        card = self.cards.nth(i)
        if card.locator('select').input_value() == what: card.get_by_role('button', name='✓', exact=True).click()
        else: card.locator('select').select_option(what)

    def open_on_suspects(self):
        "It opens on the suspects; suggestions are preselected, but not chosen"
        expect(self.cards.first).to_be_visible(timeout=600_000)
        expect(self.menus.first).not_to_have_value('<Keep>')
        self.shows('Nothing is chosen')
        for o in ('img', '.cd-image button'): expect(self.cards.locator(o)).to_have_count(4)
        assert self.cards.locator('img').evaluate_all('all => all.map(o => o.alt)') == [
            o.split('Show ')[1].removesuffix(' large')
            for o in self.cards.locator('.cd-image button').evaluate_all('all => all.map(o => o.title)')]
        self.is_readable()
        self.turn(self.button('Apply').click)
        self.shows('Nothing was chosen, so nothing has moved. A suggestion counts once you agree')
        assert state(self.data) == self.start

    def enlarge_and_close(self):
        "A click shows an image large, a click anywhere closes it; on the keyboard the same key does both"
        zoom = self.cards.first.locator('.cd-image button')
        expect(self.cards.first.locator('img')).to_have_js_property('complete', True)
        assert zoom.bounding_box()['width'] > 170   # all of the image
        zoom.click()
        expect(self.large).to_have_js_property('naturalWidth', 128)
        expect(self.large).to_be_visible()
        assert '/' in self.large.get_attribute('alt') and self.large.bounding_box()['width'] >= 128
        self.is_readable()
        self.page.locator('.cd-large').click(position=dict(x=9, y=9))
        expect(self.large).not_to_be_visible()
        zoom.focus()
        self.page.keyboard.press('Space')
        expect(self.large).to_be_visible()
        self.page.keyboard.press('Space')
        expect(self.large).not_to_be_visible()

    def apply(self, n):
        self.turn(self.button('Apply').click)
        self.shows(f'Moved {n} image')
        now = state(self.data)
        assert sorted(now.values()) == sorted(self.start.values()) and now != self.start
        return now

    def undo(self, n):
        self.turn(self.button('Undo').click)
        self.shows(f'Put back {n} image')
        assert state(self.data) == self.start
        expect(self.button('Undo')).to_be_disabled()

def test_cleaner_in_voila(page, lab, tmp_path):
    "Choices in two categories and two data sets, on two pages; in light colours, and on a phone"
    o = Cards(page, lab/'data')
    with serving(lab, 'voila', 'clean.ipynb', '--no-browser', '--Voila.log_level=ERROR') as port:
        page.goto(f'http://127.0.0.1:{port}/', timeout=600_000)
        o.open_on_suspects()
        page.screenshot(path=tmp_path/'suspects.png')
        o.button('✓').first.click()
        o.shows('Chosen: 1 to')
        o.menus.first.select_option('<Keep>')
        o.shows('Nothing is chosen')

        o.turn(o.view.select_option, 'All images')
        o.choose(0, '<Delete>')
        o.choose(1, 'dog')
        o.turn(o.button('Next ›').click)
        o.shows('page 2 of')
        o.choose(2, '<Delete>')
        o.dataset.select_option('Valid')
        o.shows('page 1 of 1')
        o.category.select_option('dog')
        expect(o.cards.first.get_by_title('Show dog/')).to_be_visible()
        o.choose(0, 'cat')
        o.shows('Chosen: 2 to delete, 1 to cat, 1 to dog')
        o.category.select_option('cat')
        expect(o.cards.first.get_by_title('Show cat/')).to_be_visible()
        o.turn(o.dataset.select_option, 'Train')
        for i,choice in enumerate(('<Delete>', 'dog')): expect(o.menus.nth(i)).to_have_value(choice)
        o.turn(o.button('Next ›').click)
        o.shows('page 2 of')
        expect(o.menus.nth(2)).to_have_value('<Delete>')
        page.screenshot(path=tmp_path/'choices.png')

        now = o.apply(4)
        assert len(list((o.data/'.removed'/'cat').iterdir())) == 2
        assert Counter(k.split('/')[0] for k in now if not k.startswith('.')) == dict(cat=12, dog=14)
        o.undo(4)
        o.shows('Chosen: 2 to delete, 1 to cat, 1 to dog')   # to change one and apply again

        page.set_viewport_size(dict(width=390, height=844))
        left = page.locator('.cd-card').evaluate_all('all => all.slice(0, 2).map(o => o.getBoundingClientRect().left)')
        assert len(set(left)) == 2   # side by side
        assert page.evaluate('document.scrollingElement.scrollWidth') <= 390
        page.screenshot(path=tmp_path/'phone.png')

@contextmanager
def jupyterlab(page, folder, tmp_path, theme='JupyterLab Dark'):
    "Open `clean.ipynb` in `folder` in JupyterLab, and run its cell"
    page.set_viewport_size(dict(width=1600, height=1400))
    quiet = [f'--ServerApp.{o}' for o in ('log_level=ERROR', 'port_retries=0', f'root_dir={folder}', 'open_browser=False')]
    options = ('--allow-root', '--IdentityProvider.token=', *quiet, '--LabApp.news_url=None')
    settings = tmp_path/'settings'/'@jupyterlab'/'apputils-extension'
    settings.mkdir(parents=True)
    (settings/'themes.jupyterlab-settings').write_text(f'{{"theme": "{theme}"}}')
    with serving(folder, 'jupyter', 'lab', *options, JUPYTERLAB_SETTINGS_DIR=str(tmp_path/'settings')) as port:
        page.goto(f'http://127.0.0.1:{port}/lab/tree/clean.ipynb', timeout=600_000)
        page.get_by_text('| Idle').wait_for(timeout=600_000)   # without a kernel, a cell that is run is forgotten
        page.locator('.jp-CodeCell .cm-content').first.click()   # JupyterLab moves the focus until then
        page.keyboard.press('Shift+Enter')
        assert page.locator('body').get_attribute('data-jp-theme-light') == str('Dark' not in theme).lower()
        yield

def test_cleaner_in_jupyterlab(page, lab, tmp_path):
    "In dark colours, with large images"
    o = Cards(page, lab/'data')
    with jupyterlab(page, lab, tmp_path):
        o.open_on_suspects()
        page.screenshot(path=tmp_path/'dark.png')
        o.enlarge_and_close()
        o.button('✓').first.click()
        o.shows('Chosen: 1 to')
        o.apply(1)
        o.undo(1)
        o.view.select_option('Confusion matrix')
        expect(page.locator('.cd-open')).to_have_count(1)
        cell = page.locator('.cd-matrix button:enabled:not(.cd-open)').first
        n = cell.inner_text()   # the locator will find another one
        cell.press('Enter')
        expect(page.locator('.cd-open')).to_have_text([n])   # for a moment the one before it is open, too
        expect(o.cards).to_have_count(min(4, int(n)))
        o.is_readable()

def test_a_double_click_counts_once(page):
    "The second click would accept or undo what nobody has looked at; pages may be turned fast"
    page.set_content('<div class="cd-review"><button>✓ Yes to all on this page</button><button>Next ›</button></div>')
    page.evaluate('clicks = {}; addEventListener("click", e => { clicks[e.target.textContent[0]] = 1 + (clicks[e.target.textContent[0]] || 0) })')
    page.add_script_tag(content=(Path(cleaner_module.__file__).parent.parent/'static'/'cleaner.js').read_text(encoding='utf8'))
    for o in page.get_by_role('button').all(): o.dblclick()
    page.get_by_role('button').first.click()
    assert page.evaluate('clicks') == {'✓': 2, 'N': 2}

@pytest.mark.parametrize('paper, ink', [('#fff', '#333'), ('#1f1f1f', '#ccc')])
def test_without_the_colours_of_jupyterlab(page, paper, ink):
    "In VS Code's notebooks ipywidgets' own rules for borders and colours have no values: text and fields are still seen"
    page.set_content(f'''<html lang="en"><title>t</title><style>body {{ background: {paper}; color: {ink} }}
        select, input, button {{ border: var(--none); background: var(--none); color: var(--none) }}</style>
        <main class="cd-review"><div class="widget-dropdown"><select aria-label="label"><option>cat</select></div>
        <div class="widget-text"><input aria-label="name" value="dog"></div>
        <button class="jupyter-button">Next</button> <button class="jupyter-button mod-primary">Apply</button></main>''')
    page.add_style_tag(path=Path(cleaner_module.__file__).parent.parent/'static'/'cleaner.css')
    assert violations(page) == []
    borders,inks,papers = (page.locator('select, input, button').evaluate_all(f'all => all.map(o => getComputedStyle(o).{k})')
                           for k in ('borderTopStyle', 'color', 'backgroundColor'))
    assert borders[:2] == ['solid']*2 and inks[:3] == [page.evaluate('getComputedStyle(document.body).color')]*3
    assert 'rgba(0, 0, 0, 0)' not in papers[2:]   # one knows a button by its background

LABELLING = '''from catdog.review import Labeller
Labeller('data', ['cat', 'dog'], max_n={})'''

@pytest.mark.parametrize('n, theme', [(12, 'JupyterLab Light'), pytest.param(24, 'JupyterLab Dark', marks=pytest.mark.nightly)])
def test_label_by_keyboard(page, tmp_path, n, theme):
    "Five keys a second, and none is lost; nor is an answer, if the kernel is killed"
    folder,pages = tmp_path/'lab',{12: 3, 24: 9}[n]
    truth = unsorted(folder/'data', n*(pages + 2)//2)
    write_notebook(folder, LABELLING.format(n))
    answers = folder/'data'/'.removed'/'answers.json'
    cards = page.locator('.cd-card')
    def names(): return [o.split('/')[-1] for o in cards.locator('img').evaluate_all('all => all.map(o => o.alt)')]
    def given(): return json.loads(answers.read_text())['choices'] if answers.exists() else {}
    with jupyterlab(page, folder, tmp_path, theme):
        expect(cards).to_have_count(n)
        page.screenshot(path=tmp_path/'labeller.png')
        cards.first.locator('select').focus()
        asked = []
        for i in range(pages):
            expect(cards.locator('img')).to_have_count(n)   # they come after the menus
            shown = names()
            assert len(shown) == n and not {*shown} & {*asked}
            asked += shown
            for k,name in enumerate(shown):
                page.keyboard.press(str(1 + (truth[name] == 'dog')) if k%2 else truth[name][0])   # digits and letters
                page.wait_for_timeout(200)
            if i == 1: page.screenshot(path=tmp_path/'labelled.png')
            page.keyboard.press('Enter')
            expect(page.get_by_text(f'page {i + 2} of')).to_be_visible()
            expect(cards.first.locator('select')).to_be_focused()
        assert given() == {o: truth[o] for o in asked}
        assert violations(page, within='.jp-OutputArea-output:has(.cd-card)') == []
        page.screenshot(path=tmp_path/'suggested.png')
        page.keyboard.press('Enter')   # keys that are pressed while the page is turned are for the next one
        page.keyboard.press('0')
        page.keyboard.press('Delete')
        expect(page.get_by_text('to delete')).to_be_visible()
        until(lambda: len(given()) == n*(pages + 1) + 2)   # they are shown before they are written
        assert [*given().values()][-2:] == ['<Keep>', '<Delete>']
        assert page.locator('.jp-Cell').count() == 2   # no key was a command of JupyterLab

        kernel, = kernels().values()
        before = given()
        cards.evaluate_all('cards => cards.forEach(o => o.dataset.before = "")')
        kernel.kill()
        page.get_by_role('dialog').get_by_role('button', name='Ok').click()   # "appears to have died"
        page.get_by_text('| Idle').wait_for()
        page.locator('.jp-CodeCell .cm-content').first.click()
        page.keyboard.press('Shift+Enter')
        expect(page.locator('.cd-card[data-before]')).to_have_count(0)
        expect(page.locator('.cd-card:visible')).to_have_count(n - 2)   # all others are answered
        assert given() == before and not {*names()[:n - 2]} & {*before}
