// The page: choose, drop, paste or take images, and read what the back end (server.js or browser.js) predicts.
'use strict';
const get = id => document.getElementById(id);
const results = get('results'), preview = get('preview'), button = get('predict');   // no button: predict at once
let backend, chosen = [], note = '', turn = 0;   // a new turn ends the one before it
document.documentElement.classList.add('script');

// Connect a back end: {ready, parallel, predict, correct}. `ready` is a promise; `parallel` the number of images to predict at the
// same time; `predict(file, why)` returns a promise of {label, probabilities, doubt, text, image}, of {why} or {why_not} if
// `why`, or of {error} about this file. It throws an error whose message says why it cannot predict at all.
// `correct(file, label)`, which is used if the page offers it, keeps a correction and returns a promise of a sentence.
function connect(it) {
  backend = it;
  backend.ready.then(() => { if (!button && !turn) report('Ready.'); }, e => report(e.message, true));
}

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function report(text, failed = false) {
  get('status').replaceChildren(failed ? make('span', {className: 'error', textContent: text}) : text);
}

// ---- Answers: the same rules as in catdog/deploy/predictor.py

const percent = p => p > .999 ? '>99.9 %' : p < .001 ? '<0.1 %' : `${(Math.floor(1000*p + .5)/10).toFixed(1)} %`;
const forcedChoice = ({label, doubt}) => doubt === 'unlike' ? `If it had to be one of them: ${label}.` : '';
const tally = ({label, doubt}) => ({between: 'not sure', unlike: 'like none of them'})[doubt] ?? label;

function shownProbabilities({probabilities, doubt}) {
  const pairs = doubt === 'unlike' ? [] : Object.entries(probabilities);
  return pairs.length <= 6 ? pairs : pairs.sort((a, b) => b[1] - a[1]).slice(0, 5);
}

function card(file, answer) {
  if (answer.error) return make('article', {className: 'error'},
    make('p', {}, make('bdi', {textContent: file.name}), `: ${answer.error}`));
  const card = get('card').content.firstElementChild.cloneNode(true), part = o => card.querySelector(o);
  for (const o of card.querySelectorAll('bdi')) o.textContent = file.name;
  Object.assign(part('img'), {src: answer.image, alt: file.name});
  Object.assign(part('h2'), {textContent: answer.text, className: answer.doubt ? 'unsure' : ''});
  part('.forced').textContent = forcedChoice(answer);
  const row = part('dl > div');
  part('dl').replaceChildren(...shownProbabilities(answer).map(([label, p]) => {
    const one = row.cloneNode(true);
    one.querySelector('dt').textContent = label;
    one.querySelector('rect').setAttribute('width', 100*p);
    one.querySelector('span').textContent = percent(p);
    return one;
  }));
  part('[aria-expanded]')?.addEventListener('click', () => toggleWhy(file, answer, part));
  part('form')?.addEventListener('submit', event => correct(event, file, part));
  return card;
}

async function toggleWhy(file, {label}, part) {
  const figure = part('figure'), img = part('figure img'), caption = part('figcaption');
  figure.hidden = !figure.hidden;
  part('[aria-expanded]').setAttribute('aria-expanded', !figure.hidden);
  if (figure.hidden || img.src) return;
  caption.textContent = 'Looking …';
  const {why, why_not, error} = await backend.predict(file, true).catch(e => ({error: e.message}));
  if (why) img.src = why;
  caption.textContent = why ? `Bright: what spoke for ${label}. Dark and grey: what did not.` : why_not || error;
}

async function correct(event, file, part) {
  event.preventDefault();
  const fields = part('fieldset'), said = part('details > div'), label = part('select').value;
  part('summary').focus();   // what is disabled loses the focus
  fields.disabled = true;   // once
  try { said.textContent = await backend.correct(file, label); }
  catch (e) {
    said.textContent = e.message;
    fields.disabled = false;
  }
}

async function predictChosen() {
  const mine = ++turn, files = chosen, started = [], counts = new Map();
  for (const img of results.querySelectorAll('img')) URL.revokeObjectURL(img.src);
  results.replaceChildren();
  preview.replaceChildren();
  if (!files.length) return report('Choose an image first.');
  let answer;
  try {
    await backend.ready;
    for (const [i, file] of files.entries()) {
      report(files.length > 1 ? `Looking at image ${i + 1} of ${files.length} …` : 'Looking …');
      for (let n = started.length; n < Math.min(files.length, i + backend.parallel); n++) {
        started.push(backend.predict(files[n]));
        started[n].catch(() => {});   // handled below, when its turn comes
      }
      answer = await started[i];
      if (mine !== turn) return;
      results.append(card(file, answer));
      if (!i) results.scrollIntoView({block: 'nearest'});
      const what = answer.error ? 'cannot be opened' : tally(answer);
      counts.set(what, (counts.get(what) ?? 0) + 1);
    }
  } catch (e) {
    if (mine !== turn) return;
    results.append(...files.slice(results.children.length).map(file => card(file, {error: 'no answer'})));
    return report(e.message, true);
  }
  const one = answer.error ? `${files[0].name}: ${answer.error}` : answer.text;
  report((files.length === 1 ? one : [...counts].map(([what, n]) => `${n} ${what}`).join(', ')) + note);
}

// ---- Choosing: a dialog, the camera, dropping, pasting

function choose(files, leftOut = 0) {
  turn++;
  chosen = [...files];
  note = leftOut ? `; left out, as their names are not those of images: ${leftOut}` : '';
  if (!button) return predictChosen();
  preview.replaceChildren(...chosen.slice(0, 16).map(file => {
    const img = make('img', {alt: '', src: URL.createObjectURL(file)});
    img.onload = () => URL.revokeObjectURL(img.src);
    img.onerror = () => { img.onload(); img.replaceWith(make('i', {textContent: '?'})); };   // the server may open it
    return make('li', {title: file.name}, img, file.name);
  }));
  report(`${chosen.length} image${chosen.length > 1 ? 's' : ''} chosen${note}`);
}

const SUFFIX = /\.(jpe?g|jpe|jfif|jif|png|webp|avif|gif|bmp|dib|tiff?|heic|heif)$/i;

// Sort the files below `entry` into `found.images` and `found.others`, by their names
async function readFolder(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    if (file.name[0] === '.') return;
    found[file.type.startsWith('image/') || SUFFIX.test(file.name) ? 'images' : 'others'].push(file);
  } else {
    const reader = entry.createReader(), all = [];
    const read = () => new Promise((done, failed) => reader.readEntries(done, failed));   // a hundred at a time
    for (let more; (more = await read()).length;) all.push(...more);
    all.sort((a, b) => a.name.localeCompare(b.name, undefined, {numeric: true}));
    for (const o of all) await readFolder(o, found);
  }
}

async function drop({items, files}) {
  const entries = [...items].map(o => o.webkitGetAsEntry?.()).filter(Boolean), found = {images: [], others: []};
  if (!entries.some(o => o.isDirectory))
    return files.length ? choose(files) : report('That was not a file: save the image first, then drop its file here.');
  report('Reading the folder …');
  try { for (const o of entries) await readFolder(o, found); }
  catch { return report('The folder cannot be read: choose the images in it.', true); }
  found.images.length ? choose(found.images, found.others.length) : report('There is no image in this folder.');
}

for (const id of ['file', 'camera']) get(id).addEventListener('change', ({target}) => {
  if (target.files.length) choose(target.files);
  target.value = '';   // so that the same image can be chosen again
});
const over = yes => document.body.classList.toggle('over', yes);
addEventListener('dragover', e => { e.preventDefault(); over(true); });
addEventListener('dragleave', e => { if (!e.relatedTarget) over(false); });
addEventListener('drop', e => { e.preventDefault(); over(false); drop(e.dataTransfer); });
addEventListener('paste', ({clipboardData: {files}}) => {
  files.length ? choose(files) : report('There is no image in the clipboard.');
});
get('form').noValidate = true;   // the script knows what was dropped and pasted, too
get('form').addEventListener('submit', e => { e.preventDefault(); predictChosen(); });
