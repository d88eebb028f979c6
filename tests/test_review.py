"Review must not lose a picture, whatever happens: killed in the middle, a full disk, a folder that cannot be written."
import json, multiprocessing, os, random, resource, shutil, signal, socket, subprocess, sys, time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import nbformat, psutil, pytest

from catdog.images import CatdogError
from catdog.review import apply_choices, can_undo, undo_choices
from catdog.sample import draw

JOURNAL = Path('.removed/journal.jsonl')

def dataset(folder, n=15):
    "`n` cats and `n` dogs under the same names, each with content of its own, and their manifest"
    rows = []
    for label in ('cat', 'dog'):
        (folder/label).mkdir(parents=True)
        for i in range(n):
            (folder/label/f'{i}.jpg').write_text(f'{label} {i}')
            rows.append(dict(label=label, file=f'{label}/{i}.jpg', status='ok', reason='',
                             url=f'http://127.0.0.1/{label}/{i}', title='Größe'))
    # spaced as no program of ours would write it, so that a line that was made anew shows
    lines = ''.join(json.dumps(o, separators=(' , ', ' :')) + '\n' for o in rows)
    (folder/'manifest.jsonl').write_text(lines, encoding='utf8')
    return folder

def choices(folder, n=15):
    "A third to the other folder, where each name is taken; a third out; a third stays"
    kinds = {'cat': ('dog', '<Delete>', '<Keep>'), 'dog': ('cat', '<Delete>', '<Keep>')}
    return {folder/label/f'{i}.jpg': kinds[label][i%3] for label in kinds for i in range(n)}

def state(folder):
    return {o.relative_to(folder).as_posix(): o.read_bytes() for o in folder.rglob('*')
            if o.is_file() and o.parent.name != '.removed'}
def pictures(folder): return sorted(v for k,v in state(folder).items() if k.endswith('.jpg'))
def check_manifest(folder):
    "Each row names a file that is there, and that is the picture it named at first"
    rows = [json.loads(o) for o in (folder/'manifest.jsonl').read_text(encoding='utf8').splitlines()]
    assert len({o['file'] for o in rows}) == len(rows)
    for o in rows: assert (folder/o['file']).read_text() == ' '.join(o['url'].split('/')[-2:])

class Lines:
    "Count the lines of catdog/review.py that run; kill this process with SIGKILL before line number `last`"
    def __init__(self, last=None): self.n,self.last = 0,last
    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.endswith('review.py'): return None
        if event == 'line':
            self.n += 1
            if self.n == self.last: os.kill(os.getpid(), signal.SIGKILL)
        return self
    def __enter__(self): sys.settrace(self); return self
    def __exit__(self, *_): sys.settrace(None)

def killed_at(line, what):
    "Run `what` in a process of its own that is killed before that `line`; whether it was"
    pid = os.fork()
    if not pid:
        try:
            with Lines(line): what()
        finally: os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

@pytest.mark.parametrize('seed', range(40))
def test_killed_while_applying(tmp_path, seed):
    counted = dataset(tmp_path/'counted')
    with Lines() as lines: apply_choices(counted, choices(counted))
    folder = dataset(tmp_path/'data')
    start,everything = state(folder),pictures(folder)
    assert killed_at(random.Random(seed).randint(1, lines.n - 1), lambda: apply_choices(folder, choices(folder)))
    assert pictures(folder) == everything
    # a new process knows no choices; the same one still has them; a third starts with something else
    apply_choices(folder, [{}, choices(folder), {folder/'cat'/'2.jpg': 'dog'}][seed%3])
    assert pictures(folder) == everything
    check_manifest(folder)
    if seed%3 == 1:
        left,expected = ({k for k in state(o) if not k.startswith('dog')} for o in (folder, counted))
        assert left == expected
    undo_choices(folder)
    assert state(folder) == start
    assert not can_undo(folder)

@pytest.mark.parametrize('seed', range(40))
def test_killed_while_undoing(tmp_path, seed):
    counted,folder = dataset(tmp_path/'counted'),dataset(tmp_path/'data')
    start,everything = state(folder),pictures(folder)
    for o in (counted, folder): apply_choices(o, choices(o))
    with Lines() as lines: undo_choices(counted)
    assert killed_at(random.Random(seed).randint(1, lines.n - 1), lambda: undo_choices(folder))
    assert pictures(folder) == everything
    if seed%2: undo_choices(folder)
    else:   # applying something new first finishes what was begun
        apply_choices(folder, {folder/'cat'/'2.jpg': 'dog'})
        assert pictures(folder) == everything
        undo_choices(folder, everything=True)
    assert state(folder) == start

def test_journal_cut_off_anywhere(tmp_path):
    "After a power failure the last lines may be missing, or half there"
    folder = dataset(tmp_path/'data', 3)
    start = state(folder)
    apply_choices(folder, choices(folder, 3))
    journal,applied = (folder/JOURNAL).read_bytes(),state(folder)
    first = journal.index(b'\n') + 1   # the plan is on the disk before anything moves
    for cut in range(first, len(journal), 7):
        copy = tmp_path/str(cut)
        shutil.copytree(folder, copy)
        (copy/JOURNAL).write_bytes(journal[:cut])
        apply_choices(copy, {})
        assert state(copy) == applied
        undo_choices(copy)
        assert state(copy) == start
        shutil.rmtree(copy)

def test_full_disk(tmp_path):
    "The journal cannot be written: nothing moves that is not in it, and a sentence says so"
    folder = dataset(tmp_path/'data')
    start,everything = state(folder),pictures(folder)
    counted = dataset(tmp_path/'counted')
    apply_choices(counted, choices(counted))
    size,plan = (counted/JOURNAL).stat().st_size,(counted/JOURNAL).read_bytes().index(b'\n')
    # the limit is real: the kernel writes the part of a line that still fits, then refuses
    for limit in (0, 10, plan - 9, plan + 1, *range(plan + 50, size - 1, size//20), size - 1):
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try: apply_choices(folder, choices(folder))
            except CatdogError as e: os._exit('File too large' in str(e))
            finally: os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert pictures(folder) == everything
        if limit <= plan + 1: assert state(folder) == start   # what is not in the journal has not moved
        apply_choices(folder, {})   # there is room again
        check_manifest(folder)
        undo_choices(folder, everything=True)
        assert state(folder) == start
        (folder/JOURNAL).unlink(missing_ok=True)

def as_nobody(what):
    "Run `what` without root's right to write everywhere; what it raised, as text"
    read,write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if not os.getuid(): os.setresuid(65534, 65534, 65534)
            what()
            os.write(write, b'nothing')
        except BaseException as e: os.write(write, f'{type(e).__name__}: {e}'.encode())
        finally: os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as f: return f.read()

@pytest.mark.parametrize('locked', ['.', 'dog', 'cat'])
def test_read_only_folder(tmp_path, locked):
    folder = dataset(tmp_path/'data')
    start,everything = state(folder),pictures(folder)
    for o in (tmp_path, *tmp_path.parents):
        mode = o.stat().st_mode
        if o.stat().st_uid == os.getuid() and o != Path('/') and not mode & 1: o.chmod(mode | 0o11)
    for o in (folder, folder/'cat', folder/'dog'): o.chmod(0o777)
    (folder/locked).chmod(0o555)
    said = as_nobody(lambda: apply_choices(folder, choices(folder)))
    assert said.startswith('CatdogError') and 'Permission denied' in said and str(folder) in said
    assert pictures(folder) == everything
    (folder/locked).chmod(0o777)
    assert as_nobody(lambda: apply_choices(folder, choices(folder))) == 'nothing'
    assert pictures(folder) == everything and state(folder) != start
    check_manifest(folder)
    assert as_nobody(lambda: undo_choices(folder, True)) == 'nothing'
    assert state(folder) == start

def test_vanished_picture(tmp_path):
    "Someone took pictures away meanwhile: the others move, and each that is gone is named"
    folder = dataset(tmp_path/'data')
    gone = [folder/'cat'/'0.jpg', folder/'cat'/'1.jpg']
    for o in gone: o.unlink()
    start = state(folder)
    moves = apply_choices(folder, choices(folder))
    assert {o.file: o.reason for o in moves if not o.to} == dict.fromkeys(gone, 'it is no longer there')
    assert sum(o.to is not None and o.to.exists() for o in moves) == len(moves) - 2 == 18
    (moves[-1].to).unlink()   # and before undo one more
    kept = {k: v for k,v in start.items() if k != moves[-1].file.relative_to(folder).as_posix()}
    lost = [o for o in undo_choices(folder) if not o.to]
    assert [(o.file, o.reason) for o in lost] == [(moves[-1].to, 'it is no longer there')]
    assert {k for k in state(folder) if k.endswith('.jpg')} == {k for k in kept if k.endswith('.jpg')}

def test_two_at_once(tmp_path):
    "Two people apply the same choices at the same time: each picture moves once"
    folder = dataset(tmp_path/'data', 200)
    start,everything = state(folder),pictures(folder)
    barrier,pids = multiprocessing.get_context('fork').Barrier(4),[]
    for _ in range(4):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                barrier.wait()
                apply_choices(folder, choices(folder, 200))
                code = 0
            finally: os._exit(code)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(o, 0)[1]) for o in pids] == [0]*4
    assert pictures(folder) == everything
    check_manifest(folder)
    undo_choices(folder, everything=True)
    assert state(folder) == start

def test_journal_has_a_line_before_and_after(tmp_path):
    folder = dataset(tmp_path/'data', 3)
    apply_choices(folder, choices(folder, 3))
    lines = [json.loads(o) for o in (folder/JOURNAL).read_text().splitlines()]
    assert [o['event'] for o in lines] == ['planned', *['moving', 'moved']*4, 'applied']
    assert lines[1]['file'] == 'cat/0.jpg' and lines[1]['to'] == 'dog/0-2.jpg'
    assert (folder/'.removed/cat/1.jpg').read_text() == 'cat 1'

def test_cleaner_killed_at_any_time(tmp_path):
    "`Cleaner.apply` is killed in the middle; a new `Cleaner` finishes it, and takes it back: twenty times"
    from catdog.data import get_dls
    from catdog.review import Cleaner
    from catdog.train import get_learner
    data,r = drawings(tmp_path/'data', 120),random.Random(0)
    rows = (dict(label=o.parent.name, file=o.relative_to(data).as_posix(), status='ok') for o in data.rglob('*.jpg'))
    (data/'manifest.jsonl').write_text(''.join(json.dumps(o, separators=(' , ', ' :')) + '\n' for o in rows))
    learn = get_learner(get_dls(data, size=32, num_workers=0), 'squeezenet1_0')
    start,everything = state(data),pictures(data)
    cleaner = Cleaner(learn, max_n=4)   # its choices are there in each process that is forked from this one
    for i,f in enumerate(cleaner.table.file): cleaner.iw.choose(f, ('<Delete>', 'cat', 'dog')[i%3])
    files = [cleaner.fns[i] for i in cleaner.delete()] + [cleaner.fns[i] for i,_ in cleaner.change()]

    def left(): return sum(o.exists() for o in files)

    def killed_with(n):
        "Apply in a process of its own, and kill it once no more than `n` pictures are left to move"
        pid = os.fork()
        if not pid:
            try: cleaner.apply()
            finally: os._exit(0)
        while left() > n: pass
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def finish_and_undo():
        "As after a restart, with a `Cleaner` that knows no choices but those in the journal"
        after = Cleaner(learn, max_n=4)
        after.apply()
        applied = state(data)
        after.undo()
        assert state(data) == start and after.bt_undo.disabled
        (data/JOURNAL).unlink()
        return applied

    killed_with(0)
    applied,in_the_middle = finish_and_undo(),0
    assert len(files) == len(set(start) - set(applied)) > 100
    while in_the_middle < 20:
        killed_with(r.randint(1, len(files) - 1))
        in_the_middle += left() > 0
        assert pictures(data) == everything
        assert finish_and_undo() == applied

# The cleaner, in a browser

NOTEBOOK = '''from catdog.data import get_dls
from catdog.review import Cleaner, suspects
from catdog.train import get_learner
learn = get_learner(get_dls('data', size=64, bs=8, num_workers=0), 'squeezenet1_0')
Cleaner(learn, suspects=suspects(learn), max_n=4)'''

def drawings(folder, n=14):
    "`n` cats and `n` dogs; the first cat and the first two dogs lie in the wrong folder"
    for label,other,wrong in (('cat', 'dog', 1), ('dog', 'cat', 2)):
        (folder/label).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            draw(other if i < wrong else label, i, (128, 128)).save(folder/label/f'{i:02}.jpg', quality=95)
    return folder

@pytest.fixture
def lab(tmp_path):
    "A folder with pictures and a notebook that shows a cleaner for them"
    drawings(tmp_path/'data')
    kernel = dict(name='python3', display_name='Python 3')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)], metadata=dict(kernelspec=kernel))
    nbformat.write(notebook, tmp_path/'clean.ipynb')
    return tmp_path

def free_port():
    with socket.create_server(('127.0.0.1', 0)) as sock: return sock.getsockname()[1]

@contextmanager
def serving(folder, *args):
    "Run a Jupyter server on `folder`, yield its port, and end what was started"
    port = free_port()
    process = psutil.Popen([str(Path(sys.executable).with_name(args[0])), *args[1:], f'--port={port}'], cwd=folder)
    try:
        while process.poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex(('127.0.0.1', port)) == 0: break
            time.sleep(.1)
        yield port
    finally:
        family = [process, *process.children(recursive=True)]
        for o in family: o.terminate()
        for o in psutil.wait_procs(family, 20)[1]: o.kill()
        process.wait()

def review_with_clicks(page, folder, shot):
    "What a person does in the `Cleaner`: the same in Voilà and in JupyterLab"
    from playwright.sync_api import expect
    data,start = folder/'data',state(folder/'data')
    cards,menus = page.locator('.cd-card:visible'),page.locator('.cd-card:visible select')
    view,category,dataset_ = (page.locator('.cd-top select').nth(i) for i in range(3))
    button = lambda name: page.get_by_role('button', name=name, exact=True)
    shows = lambda text: expect(page.get_by_text(text).first).to_be_visible()
    def turn(what, *args):
        "Do `what`, after which other cards show, and wait until those of before are gone and four others there"
        cards.evaluate_all('cards => cards.forEach(o => o.dataset.before = "")')
        what(*args)
        expect(page.locator('.cd-card[data-before]')).to_have_count(0)
        expect(cards).to_have_count(4)
    def choose(i, what):
        "Choose `what` for the card number `i`, or agree where that is suggested"
        if menus.nth(i).input_value() == what: cards.nth(i).get_by_role('button', name='✓', exact=True).click()
        else: menus.nth(i).select_option(what)
    expect(cards.first).to_be_visible(timeout=600_000)

    # it opens on the suspects; what it suggests is preselected, but not chosen
    expect(menus.first).not_to_have_value('<Keep>')
    shows('Nothing is chosen')
    page.screenshot(path=shot/'suspects.png')
    turn(button('Apply').click)
    shows('Nothing is chosen, so nothing has moved. A suggestion counts once you agree')
    assert state(data) == start
    button('✓').first.click()
    expect(page.get_by_text('Chosen: 1 to')).to_be_visible()
    menus.first.select_option('<Keep>')
    shows('Nothing is chosen')

    # choices in two categories and two data sets, on two pages
    turn(view.select_option, 'All pictures')
    third = menus.nth(2).input_value()   # a suggestion, where that picture is a suspect
    choose(0, '<Delete>')
    choose(1, 'dog')
    turn(button('Next ›').click)
    shows('page 2 of')
    choose(2, '<Delete>')
    dataset_.select_option('Valid')
    shows('page 1 of 1')
    category.select_option('dog')
    expect(cards.first.get_by_title('Show dog/')).to_be_visible()
    choose(0, 'cat')
    shows('Chosen: 2 to delete, 1 to cat, 1 to dog')
    category.select_option('cat')
    expect(cards.first.get_by_title('Show cat/')).to_be_visible()
    turn(dataset_.select_option, 'Train')
    for i,choice in enumerate(('<Delete>', 'dog', third)): expect(menus.nth(i)).to_have_value(choice)
    turn(button('Next ›').click)
    shows('page 2 of')
    expect(menus.nth(2)).to_have_value('<Delete>')
    page.screenshot(path=shot/'choices.png')

    # a click shows a picture large, a click anywhere closes it; on the keyboard the same key does both
    zoom,large = cards.first.locator('.cd-picture button'),page.locator('.cd-large img')
    zoom.click()
    expect(large).to_be_visible()
    page.screenshot(path=shot/'large.png')
    assert large.evaluate('o => o.naturalWidth') == 128
    page.locator('.cd-large').click(position=dict(x=9, y=9))
    expect(large).not_to_be_visible()
    zoom.focus()
    page.keyboard.press('Space')
    expect(large).to_be_visible()
    page.keyboard.press('Space')
    expect(large).not_to_be_visible()

    turn(button('Apply').click)
    shows('Moved 4 pictures.')
    now = state(data)
    assert sorted(now.values()) == sorted(start.values()) and len(list((data/'.removed'/'cat').iterdir())) == 2
    assert Counter(o.split('/')[0] for o in now if not o.startswith('.')) == dict(cat=12, dog=14)
    turn(button('Undo').click)
    shows('Put back 4 pictures.')
    assert state(data) == start
    expect(button('Undo')).to_be_disabled()
    shows('Chosen: 2 to delete, 1 to cat, 1 to dog')   # to change one and apply again

def set_timeouts(page, ms=120_000):
    from playwright.sync_api import expect
    page.set_default_timeout(ms)
    expect.set_options(timeout=ms)

def test_cleaner_in_voila(page, lab, tmp_path):
    set_timeouts(page)
    with serving(lab, 'voila', 'clean.ipynb', '--no-browser', '--Voila.log_level=ERROR') as port:
        page.goto(f'http://127.0.0.1:{port}/', timeout=600_000)
        review_with_clicks(page, lab, tmp_path)

def test_cleaner_in_jupyterlab(page, lab, tmp_path):
    set_timeouts(page)
    page.set_viewport_size(dict(width=1600, height=1400))
    quiet = [f'--ServerApp.{o}' for o in ('log_level=ERROR', 'port_retries=0', f'root_dir={lab}', 'open_browser=False')]
    options = ('--allow-root', '--IdentityProvider.token=', *quiet, '--LabApp.news_url=None')
    with serving(lab, 'jupyter', 'lab', *options) as port:
        page.goto(f'http://127.0.0.1:{port}/lab/tree/clean.ipynb', timeout=600_000)
        page.locator('.jp-CodeCell .cm-content').first.click(timeout=240_000)
        page.get_by_text('| Idle').wait_for(timeout=600_000)   # without a kernel, a cell that is run is forgotten
        page.keyboard.press('Shift+Enter')
        review_with_clicks(page, lab, tmp_path)

# The report, as a person gets it

def exported(folder, arch, size=64):
    "Pictures in `folder`, and a model of `arch` that was trained on them"
    from catdog.data import get_dls
    from catdog.train import ARCHS, export, train
    from fastai.vision.all import vision_learner
    if arch == 'as catdog-build trains':
        learn = train(drawings(folder/'data'), 'squeezenet1_0', size=size, bs=8)
        return learn,export(learn, folder/'models'/'drawn')
    dls = get_dls(drawings(folder/'data'), size=size, bs=8, num_workers=0)
    learn = vision_learner(dls, ARCHS[arch], pretrained=False)
    learn.arch_name = arch
    learn.fit(2, 1e-3)
    return learn,export(learn, folder/'models'/'drawn')

@pytest.mark.parametrize('arch', ['squeezenet1_0', 'resnet18', 'as catdog-build trains'])
def test_a_saved_learner_says_the_same(tmp_path, arch, monkeypatch):
    "Also where the export has merged batch normalisation into the body"
    from catdog.review import gradcam, predictions, saved_learner
    learn,model = exported(tmp_path, arch)
    again = saved_learner(tmp_path/'data', model)
    monkeypatch.setattr('catdog.review._hurry', lambda learn: ())   # ONNX Runtime knows no bfloat16
    a,b = (predictions(o).set_index('file').sort_index() for o in (learn, again))
    assert (a.loss - b.loss).abs().max() < 1e-3
    assert abs(gradcam(learn, a.index[:6], ['cat']*6) - gradcam(again, a.index[:6], ['cat']*6)).max() < .02

def review(folder, *args):
    program = str(Path(sys.executable).with_name('catdog-review'))
    return subprocess.run([program, *args], cwd=folder, capture_output=True, text=True)

def test_report_in_a_browser(page, tmp_path):
    _,model = exported(tmp_path, 'squeezenet1_0')
    # a pickle that leaves a trace when it is opened; what a stranger's might do is worse
    (model/'export.pkl').write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    (tmp_path/'data'/'cat'/'07.jpg').rename(tmp_path/'data'/'cat'/'<img src=x onerror=alert(1)>.jpg')
    done = review(tmp_path, '--path', 'data', '--model', 'models/drawn', '--out', 'r.html')
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == 'Wrote r.html; open it in a browser.', done
    assert not (tmp_path/'opened').exists()
    seen,said = [],[]
    page.on('request', lambda o: seen.append(o.url))
    page.on('console', lambda o: said.append(o.text))
    page.set_viewport_size(dict(width=360, height=700))
    page.goto((tmp_path/'r.html').as_uri())
    fetched = [o for o in seen if not o.startswith('data:')]
    assert fetched == [(tmp_path/'r.html').as_uri()] and not said   # nothing from elsewhere
    assert page.evaluate('document.documentElement.scrollWidth') <= 360   # a phone need not scroll sideways
    assert page.evaluate('[...document.images].every(o => o.naturalWidth > 0)') and page.locator('img').count() > 10
    text = page.inner_text('body')
    for o in ('cat or dog?', '28 pictures', 'Precision', 'Where it was most wrong', 'Pictures that look wrong'):
        assert o in text
    rows = [o.inner_text().split('\t')[1:] for o in page.locator('table').nth(0).locator('tr').all()[1:]]
    assert sum(int(n) for row in rows for n in row) == 28

@pytest.mark.parametrize('args,words', [
    (['--model', 'nowhere'], 'catdog-build'), (['--path', 'nowhere'], 'no such folder'),
    (['--model', 'odd'], 'is no model')])
def test_report_says_what_is_wrong(tmp_path, args, words):
    from catdog.predict import shipped_model
    drawings(tmp_path/'data', 6)
    (tmp_path/'odd').mkdir()
    (tmp_path/'odd'/'model.onnx').write_text('odd')
    options = {'--path': 'data', '--model': str(shipped_model()), args[0]: args[1]}
    done = review(tmp_path, *(o for pair in options.items() for o in pair))
    assert done.returncode == 2 and words in done.stderr and 'Traceback' not in done.stderr
