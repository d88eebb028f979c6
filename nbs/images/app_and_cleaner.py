"""Make app_and_cleaner.jpg, the image of the README: make screenshot

On the left the app, asked about two photographs (CC0); in the middle the cleaner, on drawings of which three lie in the
wrong folder; on the right the labeller, on drawings without labels, after two pages. Voilà serves them to Chromium.
"""
import contextlib, os, shutil, socket, subprocess, sys, tempfile, time
from pathlib import Path

import nbformat
from PIL import Image
from playwright.sync_api import sync_playwright

from catdog.sample.draw import PHOTOS, draw
from catdog.deploy.predictor import shipped_model

HERE = Path(__file__).resolve().parent
WIDTHS,HEIGHT,GAP = dict(app=560, cleaner=430, labeller=430),640,16   # CSS pixels
CLEANER = '''from IPython.utils.capture import capture_output
with capture_output():
    from catdog.review import Cleaner, suspects
    from catdog.train import train
    learn = train('data', size=128)
    wrong = suspects(learn)
Cleaner(learn, suspects=wrong, max_n=6)'''
LABELLER = '''from catdog.review import Labeller
labeller = Labeller('unsorted', ['cat', 'dog'], max_n=6)
for page in range(2):
    for o in labeller.shown: labeller.choose(o, o.stem[:3])
    labeller.bt_agree.click()
labeller'''
APP = 'from catdog.app import App\nApp()'

def write_images(folder):
    "Draw eighty images of each animal, three of them in the wrong folder, and thirty without labels"
    (folder.parent/'unsorted').mkdir()
    for label,other,wrong in (('cat', 'dog', 1), ('dog', 'cat', 2)):
        (folder/label).mkdir(parents=True)
        for i in range(80):
            image = draw(other if i < wrong else label, i + 1000*wrong, (256, 256))   # no image is there twice
            image.save(folder/label/f'{i:02}.jpg', quality=92)
        for i in range(30): draw(label, 5000 + i, (256, 256)).save(folder.parent/'unsorted'/f'{label}{i:02}.jpg', quality=92)

@contextlib.contextmanager
def voila(folder, code):
    "Serve a notebook whose only cell is `code`, from `folder`, and yield its URL"
    with socket.create_server(('127.0.0.1', 0)) as sock: port = sock.getsockname()[1]
    kernel = dict(name='python3', display_name='Python 3')
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata=dict(kernelspec=kernel))
    nbformat.write(notebook, folder/'page.ipynb')
    program = [Path(sys.executable).with_name('voila'), 'page.ipynb', '--no-browser', f'--port={port}']
    process = subprocess.Popen(program, cwd=folder, env={**os.environ, 'CATDOG_MODEL': str(shipped_model())},
                               stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex(('127.0.0.1', port)) == 0: break
            time.sleep(.1)
        yield f'http://127.0.0.1:{port}/'
    finally:
        process.terminate()
        process.wait(120)

def ask_app(page, files):
    "Choose `files` in the app and press Predict!"
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Choose images').click()
    chooser.value.set_files(files)
    page.get_by_text(f'{len(files)} images chosen').wait_for()
    page.get_by_role('button', name='Predict!').click()
    page.locator('.catdog-card').nth(len(files) - 1).wait_for()

def main():
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as play:
        tmp = Path(tmp)
        write_images(tmp/'data')
        browser = play.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=WIDTHS['app'], height=HEIGHT))
        page.set_default_timeout(120_000)
        with voila(tmp, APP) as url:
            page.goto(url)
            ask_app(page, list(PHOTOS.values()))
            page.wait_for_timeout(1000)
            page.screenshot(path=tmp/'app.png')
        for name,code in (('cleaner', CLEANER), ('labeller', LABELLER)):
            page.set_viewport_size(dict(width=WIDTHS[name], height=HEIGHT))
            with voila(tmp, code) as url:
                page.goto(url, timeout=600_000)
                page.locator('.cd-card:visible').first.wait_for(timeout=600_000)
                page.wait_for_timeout(1000)
                page.screenshot(path=tmp/f'{name}.png')
        whole,x = Image.new('RGB', (sum(WIDTHS.values()) + 2*GAP, HEIGHT), '#d0d7de'),0
        for name,width in WIDTHS.items():
            whole.paste(Image.open(tmp/f'{name}.png').convert('RGB'), (x, 0))
            x += width + GAP
        whole.save(HERE/'app_and_cleaner.jpg', quality=82, optimize=True)
    print(HERE/'app_and_cleaner.jpg', (HERE/'app_and_cleaner.jpg').stat().st_size)

if __name__ == '__main__': main()
