"""The `App`: upload, preview, Predict! and the answers, as widgets."""

import json, os, re
from collections import Counter
from html import escape
from importlib.resources import files as package_files
from pathlib import Path
from IPython.display import display
from ipywidgets import Box, Button, Dropdown, FileUpload, HTML, VBox
from ..core.errors import CatdogError, ImageError
from ..core.files import one_at_a_time
from ..core.images import data_url, jpeg_bytes, open_image
from ..sample.draw import PHOTOS, draw
from .predictor import (NOTICE, Classifier, find_models, forced_choice, keep_image, percent, question,
                        shown_probabilities, tally)

MAX_MESSAGE = 64*2**20   # bytes from a browser at once
_MAX_FILES,_MAX_BYTES = 32,16*2**20   # images at once, and bytes each

def _files(value):
    "Return (name, bytes) pairs from the `value` of a `FileUpload`, of ipywidgets 7 or 8"
    if isinstance(value, dict): return [(name, bytes(o['content'])) for name,o in value.items()]
    return [(o['name'], bytes(o['content'])) for o in value]

def _static(name): return (package_files('catdog')/'static'/name).read_text(encoding='utf8')
def _error(text): return f'<p class="catdog-error" role="alert">{escape(text)}</p>'
def _soft(text): return f'<p class="catdog-soft">{escape(text)}</p>' if text else ''

def _answer(pred):
    bars = (f'<div class="catdog-bar"><span>{escape(label)}</span><i><b style="width:{p:.2%}"></b></i>'
            f'<span>{escape(percent(p))}</span></div>' for label,p in shown_probabilities(pred))
    return (f'<p class="catdog-label{"" if pred.sure else " catdog-unsure"}">{escape(str(pred))}</p>'
            + ''.join(bars) + _soft(forced_choice(pred)))

class _Card(VBox):
    "The card of the file `name` with the content `data`; a visitor's corrections go to the folder `keep`, if any"
    def __init__(self, name, data, keep=None):
        self.name,self.data,self.pred,self.preview,self.keep,self.thanks = name,data,None,None,keep,''
        self.html,self.button = HTML(),Button().add_class('catdog-why')
        super().__init__([self.html])
        self.add_class('catdog-box')
        self.button.on_click(one_at_a_time(lambda _: self._show(why=self.button.description == 'Why?')))
        self.truth = Dropdown(description='Wrong? It is', options=[''])
        self.send = Button(description='Send', disabled=True)
        self.wrong = Box([self.truth, self.send]).add_class('catdog-wrong')
        self.truth.observe(lambda change: setattr(self.send, 'disabled', not change['new']), 'value')
        self.send.on_click(one_at_a_time(lambda _: self._correct(self.truth.value)))
        try:
            if len(data) > _MAX_BYTES:
                raise ImageError(f'{len(data)/2**20:.0f} MB, more than the {_MAX_BYTES//2**20} MB that we open')
            self.preview = data_url(open_image(data, max_side=480))
            self._show()
        except ImageError as e: self.html.value = _error(f'{name}: {e.reason}')
    def predict(self, classifier):
        self.classifier,self.pred = classifier,classifier.predict(self.data)
        self.truth.options = ['', *classifier.labels]
        self.children = [self.html, self.button, *([self.wrong] if self.keep and not self.thanks else [])]
        self._show()
    def _correct(self, label):
        if not label or self.thanks: return
        try: self.thanks = keep_image(self.keep, self.data, label, 'app', self.pred)
        except CatdogError as e: self.thanks = str(e)
        self.truth.disabled = self.send.disabled = True
        self._show()
    def _show(self, why=False):
        "Show the preview, or, with `why`, the image with everything darkened that does not speak for the label"
        image,note = self.preview,''
        if why:
            try:
                image = data_url(self.classifier.why(self.data, self.pred.label))
                note = f'Bright: what spoke for {self.pred.label}. Dark and grey: what did not.'
            except CatdogError: note = 'This model cannot say why.'
        # the button stays where it is, and with it the keyboard's focus
        self.button.description = 'Show all' if why else 'Why?'
        self.html.value = (f'<div class="catdog-card"><img src="{image}" alt="{escape(self.name)}"><div>'
                           f'{_answer(self.pred) if self.pred else ""}{_soft(self.name)}{_soft(note)}'
                           f'{_soft(self.thanks)}</div></div>')

def _open_models(classifier=None):
    "Return name -> `Classifier`, or why it cannot be opened; the initial one is first, `classifier` if given"
    models = {} if classifier is None else {str(classifier.path): classifier}
    for name,path in find_models().items():
        if classifier is not None and Path(path).resolve() == Path(classifier.path).resolve(): continue
        try: models[name] = Classifier(path)
        except CatdogError as e: models[name] = str(e)
    return models

def _option(name, model):
    name = re.sub(r'^\.\.[/\\](?=models)', '', name)   # a notebook sees models/ one level up
    if isinstance(model, str): return f'{name}: cannot be opened'
    return f'{name}: only knows drawings' if model.meta.get('trained_on') == 'drawings' else name

_DRAWINGS = ('cat', 242), ('dog', 1447)   # label and seed
class App(VBox):
    "A widget to upload images, preview and predict them"
    def __init__(self,
        classifier:Classifier=None # Initial model; default: the first of `find_models`
    ):
        "Make widgets for `classifier` and all models that `find_models` finds"
        self.models,self.images,self.counts = _open_models(classifier),[],Counter(uploads=0, probes=0)
        self.keep = os.environ.get('CATDOG_KEEP')
        self.head,self.about,self.status,self.cards = HTML(),HTML(),HTML(),VBox()
        self.menu = Dropdown(options=[(_option(*o), o[0]) for o in self.models.items()], description='Model')
        self.ask,self.button = Box(),Button(description='Predict!', disabled=True)
        self.lost,self.received = Button(),HTML()   # for the script
        self.examples = [(o.name, o.read_bytes()) for o in PHOTOS.values()]
        self.examples += [(f'drawn {o[0]}.jpg', jpeg_bytes(draw(*o, (320, 320)))) for o in _DRAWINGS]
        self.tries = [self._try_button(i, *o) for i,o in enumerate(self.examples)]
        style = ''.join(f'.catdog button.catdog-try-{i} {{background-image: url("{data_url(open_image(data))}")}}\n'
                        for i,(_,data) in enumerate(self.examples))
        tries,hint = Box(self.tries),'<p class="catdog-soft catdog-hint">No image at hand? Try one of these:</p>'
        super().__init__([HTML(f'<style>{_static("app.css")}{style}</style>'), self.head, self.ask, self.status,
                          self.cards, HTML(hint), tries, self.menu, self.about, self.lost, self.received])
        for o,name in ((self.menu, 'model'), (self.button, 'go'), (tries, 'tries')): o.add_class(f'catdog-{name}')
        for name in ('ask', 'lost', 'received', 'status', 'cards'): getattr(self, name).add_class(f'catdog-{name}')
        self.add_class('catdog')
        self._make_uploads()
        self.button.on_click(one_at_a_time(lambda _: self.predict()))
        self.menu.observe(one_at_a_time(lambda _: self._switch()), 'value')
        self.lost.on_click(one_at_a_time(lambda _: (self._make_uploads(), self.choose([]))))
        self._count()
        self._switch()
    def __repr__(self): return f'App({self.menu.value!r}, {len(self.images)} images)'
    def _ipython_display_(self, **kw):
        most = MAX_MESSAGE - 4*2**20 if 'VOILA_BASE_URL' in os.environ else None
        options = json.dumps(dict(icon=_static('icon.svg'), most=most, many=_MAX_FILES)).replace('</', '<\\/')
        # not a widget: it has to run even if widgets cannot reach the kernel
        display({'text/html': f'<script>{_static("app.js")}({options})</script>'}, raw=True)
        if hasattr(super(), '_ipython_display_'): super()._ipython_display_(**kw)   # ipywidgets 7
        else: display(self._repr_mimebundle_(**kw), raw=True)
    def _try_button(self, i, name, data):
        res = Button(description=Path(name).stem, tooltip=f'Predict {name}')
        res.add_class('catdog-try').add_class(f'catdog-try-{i}')
        res.on_click(one_at_a_time(lambda _: (self.choose([(name, data)]), self.predict())))
        return res
    def _make_uploads(self):
        "Make new upload buttons; the one for a phone's camera shows only there; and a probe, answered in their thread"
        self.upload = FileUpload(accept='image/*', multiple=True, description='Choose images', icon='')
        self.camera = FileUpload(accept='image/*', description='Take a photo', icon='')
        for o,name in ((self.upload, 'upload'), (self.camera, 'camera')):
            # ipywidgets 7 keeps `value` when the same file comes again, but counts every upload
            o.add_class(f'catdog-{name}').observe(one_at_a_time(lambda change: self._uploaded(change['owner'])),
                                                  '_counter' if o.has_trait('_counter') else 'value')
        self.probe = Button().add_class('catdog-probe')
        self.probe.on_click(one_at_a_time(lambda _: self._count('probes')))
        self.ask.children = [self.upload, self.camera, self.button, self.probe]
    def _uploaded(self, upload):
        if not (files := _files(upload.value)): return
        self._count('uploads')
        if not upload.has_trait('_counter'): upload.value = ()   # so that the same file can be uploaded again
        self.choose(files)
    def _count(self, *what):
        "Count `what` where the script can read it"
        self.counts.update(what)
        self.received.value = f'<i data-uploads="{self.counts["uploads"]}" data-probes="{self.counts["probes"]}"></i>'
    @property
    def classifier(self):
        "The chosen model, or None if it cannot be opened"
        model = self.models[self.menu.value]
        return None if isinstance(model, str) else model
    def _switch(self):
        "Show the chosen model, and repeat the predictions of the previous one"
        title = question(self.classifier.labels) if self.classifier else 'What is in the image?'
        self.head.value = (f'<div class="catdog-head"><span aria-hidden="true">{_static("icon.svg")}</span><div>'
                           f'<h1>{escape(title)}</h1><p class="catdog-soft">'
                           'Choose images, press Predict!, and read what they show.</p></div></div>')
        self.about.value = _soft(self.classifier.summary) if self.classifier else _error(self.models[self.menu.value])
        if self.keep: self.about.value += _soft(NOTICE)
        self._enable()
        if self.classifier and any(o.pred for o in self.images): self.predict()
    def _enable(self): self.button.disabled = not (self.images and self.classifier)
    def choose(self,
        files:list # (name, bytes) pairs
    ):
        "Show a card for each of `files`: the image, or why it cannot be used"
        cards = [_Card(*o, self.keep) for o in files[:_MAX_FILES]]
        self.images = [o for o in cards if o.preview]
        self.cards.children,n,left_out = cards,len(self.images),len(files) - len(cards)
        self._enable()
        self.status.value = _soft(f'{n} image{"s"*(n != 1)} chosen'
                                  + f'; {left_out} left out, at most {_MAX_FILES} at once'*bool(left_out))
    def predict(self):
        "Predict every image with the chosen model"
        self.button.disabled = True
        try:
            for i,o in enumerate(self.images, 1):
                self.status.value = _soft(f'Looking at image {i} of {len(self.images)} ...')
                o.predict(self.classifier)
            found = Counter(tally(o.pred) for o in self.images)
            self.status.value = _soft(', '.join(f'{n} {o}' for o,n in found.items()))
        finally: self.button.disabled = False
