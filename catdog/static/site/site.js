// The page: loads the model, opens images, squeezes them exactly as Pillow does, and shows what the model says.
'use strict';
const get = id => document.getElementById(id);
const report = text => { get('status').textContent = text; };
const sentence = text => Object.assign(new Error(text), {known: true});   // what a person reads as it is

// An element with `properties`, and within it `children`
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- The model

async function unzipped(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load(url, integrity = '') {
  const response = await fetch(url, {integrity});
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return unzipped(new Uint8Array(await response.arrayBuffer()));
}

// (number, value) of each field of a protobuf message: a number, or the bytes of what has a length
function* fields(bytes) {
  let i = 0;
  const varint = () => {
    for (let value = 0, unit = 1;; unit *= 128) {
      const byte = bytes[i++];
      value += (byte & 127)*unit;
      if (byte < 128) return value;
    }
  };
  while (i < bytes.length) {
    const tag = varint(), kind = tag%8, end = kind === 2 ? varint() + i : 0;
    if (kind === 0) yield [tag >> 3, varint()];
    else if (kind === 2) yield [tag >> 3, bytes.subarray(i, i = end)];
    else i += kind === 1 ? 8 : 4;
  }
}

// What the model says about itself, as the exporter wrote it: JSON under the key `catdog` among its metadata
function metadata(model) {
  const text = bytes => new TextDecoder().decode(bytes);
  for (const [number, pair] of fields(model)) {
    if (number !== 14) continue;
    const {1: key, 2: value} = Object.fromEntries(fields(pair));
    if (text(key) !== 'catdog') continue;
    // Python writes numbers that JSON does not have
    const json = text(value).replace(/"(?:[^"\\]|\\.)*"|-?Infinity|NaN/g, o => o[0] === '"' ? o : 'null');
    const meta = JSON.parse(json), neither = meta.neither ?? {};
    const limits = typeof neither === 'number' ? {probability: neither} : neither;
    const {probability = 0, distance} = limits;
    return {temperature: 1, ...meta, limits: {probability, distance: distance ?? Infinity}};
  }
  throw new Error('model.onnx was not exported by catdog');
}

// From here on the browser refuses to send or fetch anything: no image can leave
function lock() {
  const policy = "default-src 'none'; script-src 'wasm-unsafe-eval'; style-src 'self'; img-src blob: data:; "
               + "manifest-src 'self'; worker-src 'self'; form-action 'none'; base-uri 'none'";
  const meta = make('meta', {content: policy});
  meta.setAttribute('http-equiv', 'Content-Security-Policy');
  document.head.append(meta);
}

async function start() {
  if (location.protocol === 'file:') throw sentence('A browser runs the model only from a web server: type "python -m '
    + 'http.server" in this folder, and open http://localhost:8000');
  const runtime = get('runtime');
  const [ort, wasmBinary, bytes] = await Promise.all([
    import(runtime.src), load(runtime.dataset.wasm, runtime.dataset.wasmIntegrity), load('model.onnx')]);
  Object.assign(ort.env.wasm, {numThreads: 1, wasmBinary});   // several threads would need special headers
  ort.env.logLevel = 'error';
  const session = await ort.InferenceSession.create(bytes, {executionProviders: ['wasm']});
  const model = {ort, session, ...metadata(bytes)};
  await run(model, new Uint8Array(3*model.size**2));   // the first run takes longer; nobody waits for it now
  if (document.readyState !== 'complete') await new Promise(done => addEventListener('load', done, {once: true}));
  navigator.serviceWorker?.register('sw.js').catch(() => {});   // without it the page works, but not offline
  lock();
  return model;
}

// Logits, and what else the model can say, about `pixels`
async function run({ort, session, size}, pixels) {
  const names = ['logits', 'distance', 'activation'].filter(o => session.outputNames.includes(o));
  return session.run({pixels: new ort.Tensor('uint8', pixels, [1, size, size, 3])}, names);
}

// ---- Images

const MAX_PIXELS = 50e6, PREVIEW = 480, DAMAGED = 'a damaged image, or one too large for this browser';
const SUFFIX = /\.(jpe?g|jpe|jfif|jif|png|webp|avif|gif|bmp|dib|tiff?|heic|heif)$/i;

// What the bytes are when they are no image that this browser opens
async function guess(file) {
  const bytes = new Uint8Array(await file.slice(0, 1024).arrayBuffer());
  const start = String.fromCharCode(...bytes), low = start.replace(/^\xef\xbb\xbf/, '').trimStart().toLowerCase();
  if (!bytes.length) return 'the file is empty';
  if (/^(<!doctype html|<html|<head|<body)/.test(low)) return 'a web page, not an image';
  if (low.includes('<svg')) return 'an SVG drawing: save it as PNG or JPEG first';
  if (low.startsWith('%pdf')) return 'a PDF document, not an image';
  if (/^(PK\x03\x04|\x1f\x8b)/.test(start)) return 'an archive: unpack it first';
  const foreign = kind => `${kind}, which this browser cannot open: save it as JPEG first`;
  if (/^....ftyp(hei|hev|mif1|msf1)/s.test(start)) return foreign('a HEIC photograph');
  if (/^(II\*\0|MM\0\*)/.test(start)) return foreign('a TIFF image');
  if (/^(\xff\x0a|\0\0\0\x0cJXL )/.test(start)) return foreign('a JPEG XL image');
  if (/^(\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM|....ftypavi[fs])/s.test(start)) return DAMAGED;
  const none = 'no image in a format that this browser opens';
  try {   // the last character may be cut in two
    new TextDecoder('utf-8', {fatal: true}).decode(bytes, {stream: true});
    return start.includes('\0') ? none : 'a text file, not an image';
  } catch { return none; }
}

// Width and height of the image in `file`, without unpacking its pixels
async function sizeOf(file) {
  const url = URL.createObjectURL(file), img = new Image();
  try {
    await new Promise((done, failed) => Object.assign(img, {onload: done, onerror: failed, src: url}));
    return [img.naturalWidth, img.naturalHeight];
  } catch { throw sentence(await guess(file).catch(() => 'cannot be read')); }
  finally { URL.revokeObjectURL(url); }
}

// `file` without the mark of its EXIF block, by which a browser would turn it
async function unturned(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const at = new TextDecoder('latin1').decode(bytes.subarray(0, 2**16)).indexOf('Exif\0\0');
  if (at >= 0) bytes[at] = 0;
  return new Blob([bytes]);
}

// The image in `file`, upright and in sRGB, as the browser draws it; or as it is stored, for a model that learnt so
async function opened(file, meta = {}) {
  const [width, height] = await sizeOf(file);
  if (width*height > MAX_PIXELS)
    throw sentence(`${width} x ${height} pixels: more than the ${MAX_PIXELS/1e6} million that we open`);
  try {
    if (meta.opened !== 'as stored') return await createImageBitmap(file);
    return await createImageBitmap(await unturned(file), {colorSpaceConversion: 'none'});
  } catch { throw sentence(DAMAGED); }
}

function paint(image, width, height, draw) {
  const context = make('canvas', {width, height}).getContext('2d', {willReadFrequently: true});
  Object.assign(context, {fillStyle: 'white', imageSmoothingQuality: 'high'}).fillRect(0, 0, width, height);
  draw ? draw(context) : context.drawImage(image, 0, 0, width, height);
  return context;
}

// The mean of each `k` times `k` pixels of `rows` rows of RGBA, as Pillow's `reduce` rounds it
function reduced(data, width, rows, k) {
  const w = Math.ceil(width/k), h = Math.ceil(rows/k), out = new Uint8Array(4*w*h);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const x1 = Math.min(width, k*x + k), y1 = Math.min(rows, k*y + k), n = (x1 - k*x)*(y1 - k*y);
    let r = n >> 1, g = r, b = r;
    for (let j = k*y; j < y1; j++) for (let i = 4*(j*width + k*x), end = 4*(j*width + x1); i < end; i += 4) {
      r += data[i]; g += data[i+1]; b += data[i+2];
    }
    out.set([r/n, g/n, b/n], 4*(y*w + x));
  }
  return out;
}

// (place of the first, number, RGBA) of rows of `bitmap`, or of columns, on white and reduced by `k`, a strip after the
// other: a photograph of 48 million pixels is not in memory a second time
function* strips(bitmap, k, columns) {
  const {width, height} = bitmap, [length, all] = columns ? [height, width] : [width, height];
  const step = Math.max(8, 8*Math.floor(2**20/length/8)), shape = n => columns ? [n, height] : [width, n];
  const context = make('canvas', {}).getContext('2d', {willReadFrequently: true});
  for (let at = 0; at < all; at += step) {
    const n = Math.min(step, all - at), [w, h] = shape(n);
    Object.assign(context.canvas, {width: w, height: h});
    context.fillStyle = 'white';
    context.fillRect(0, 0, w, h);
    context.drawImage(bitmap, columns ? -at : 0, columns ? 0 : -at);
    const {data} = context.getImageData(0, 0, w, h);
    yield [at/k, Math.ceil(n/k), k > 1 ? reduced(data, w, h, k) : data];
  }
}

// The side of the square that is cut out of an image's middle, or that it is padded to; rounded as fastai does
function square(width, height, to, method) {
  const choose = {crop: Math.min, pad: Math.max}[method];
  return choose && Math.trunc(choose(width/to, height/to)*to);
}

// Which pixel of a side of `n` lies at place `i`, when its middle `side` pixels are cut out, or it is padded
function placed(n, side, mode) {
  const offset = Math.trunc((n - side)/2);
  return i => {
    const at = i + offset;
    if (at >= 0 && at < n) return at;
    if (mode === 'zeros') return -1;
    if (mode === 'border' || n === 1) return Math.min(Math.max(at, 0), n - 1);
    const turn = ((at%(2*n - 2)) + 2*n - 2)%(2*n - 2);   // reflected, the outermost pixel once
    return Math.min(turn, 2*n - 2 - turn);
  };
}

// Pillow's antialiased bilinear filter from `side` pixels to `to`, of which the middle `size` are wanted: for each of
// them the places and weights (22 bits after the point) of the pixels that it is made of
function filter(side, to, size, place) {
  const scale = side/to, support = Math.max(scale, 1), skip = Math.floor((to - size)/2), all = [];
  for (let i = skip; i < skip + size; i++) {
    const center = (i + .5)*scale, places = [], weights = [];
    const first = Math.max(0, Math.trunc(center - support + .5));
    const end = Math.min(side, Math.trunc(center + support + .5));
    for (let x = first; x < end; x++) {
      places.push(place(x));
      weights.push(Math.max(0, 1 - Math.abs((x - center + .5)/support)));
    }
    const sum = weights.reduce((a, b) => a + b), whole = weights.map(o => Math.floor(o/sum*2**22 + .5));
    const kept = [...places.keys()].filter(j => places[j] >= 0);   // what is padded with black adds nothing
    all.push([Int32Array.from(kept, j => places[j]), Int32Array.from(kept, j => whole[j])]);
  }
  return all;
}

// One pass of the filter over RGB(A): in `data` the next pixel is `step` numbers on, the next line `line` numbers
function pass(data, step, line, lines, weighted, out, outStep, outLine, at = 0) {
  for (let y = 0; y < lines; y++) for (let i = 0; i < weighted.length; i++) {
    const [places, weights] = weighted[i];
    let r = 2**21, g = r, b = r;
    for (let j = 0; j < places.length; j++) {
      const o = y*line + places[j]*step, w = weights[j];
      r += data[o]*w; g += data[o+1]*w; b += data[o+2]*w;
    }
    const o = at + y*outLine + i*outStep;
    out[o] = r >> 22; out[o+1] = g >> 22; out[o+2] = b >> 22;
  }
}

// `bitmap` as the model wants it: (size,size,3) in 8 bits
function pixelsOf(bitmap, {size, resize_to: to, min_side: enough, resize = {}}) {
  const short = Math.min(bitmap.width, bitmap.height), k = enough ? [8, 4, 2].find(k => short >= k*enough) ?? 1 : 1;
  const [width, height] = [bitmap.width, bitmap.height].map(o => Math.ceil(o/k));
  const side = square(width, height, to, resize.method);
  const lengths = [width, height].map(n => [n, side ?? n]);
  const [across, down] = lengths.map(([n, all]) => filter(all, to, size, placed(n, all, resize.pad_mode)));
  const out = new Uint8Array(3*size*size), [w, h] = [side ?? width, side ?? height];
  if (h > to && h - to > 2*(w - to)) {   // for a tall image Pillow begins with the columns
    const low = new Uint8Array(3*size*width);
    for (const [x, n, data] of strips(bitmap, k, true)) pass(data, 4*n, 4, n, down, low, 3*width, 3, 3*x);
    pass(low, 3, 3*width, size, across, out, 3, 3*size);
  } else {
    const narrow = new Uint8Array(3*size*height);
    for (const [y, n, data] of strips(bitmap, k, false)) pass(data, 4, 4*width, n, across, narrow, 3, 3*size, 3*size*y);
    pass(narrow, 3*size, 3, size, down, out, 3*size, 3);
  }
  return out;
}

// ---- Answers

function answerOf({labels, temperature, limits}, {logits, distance, activation}) {
  const scores = Array.from(logits.data, o => o/temperature), top = Math.max(...scores);
  const powers = scores.map(o => Math.exp(o - top)), sum = powers.reduce((a, b) => a + b);
  const probabilities = powers.map(o => o/sum), best = scores.indexOf(top), probability = probabilities[best];
  const far = limits.distance !== Infinity && !(distance.data[0] <= limits.distance);
  const never = limits.probability === 1 && limits.distance === 0;   // a model that is sure of nothing
  const doubt = far && !never ? 'unlike' : far || probability < limits.probability ? 'between' : '';
  const heat = activation && heatOf(activation, scores, best);
  return {label: labels[best], probability, probabilities, doubt, heat};
}

// How much each place spoke for label `best` against the strongest other one, 0 to 1
function heatOf({data, dims: [, , height, width]}, scores, best) {
  const rival = scores.reduce((found, o, i) => i !== best && (found < 0 || o > scores[found]) ? i : found, -1);
  const n = width*height, values = new Float32Array(n).map((_, i) => Math.max(0, data[best*n + i] - data[rival*n + i]));
  const most = Math.max(1e-9, ...values);
  return {width, height, values: values.map(o => o/most)};
}

// What follows says the same as catdog/deploy/words.py

const AN = /^(?:(?!uni[^nm]|eu|ewe|one\b|us[aeiou])[aeiou]|hour|hono|heir|honest)/i;
const withArticle = label => `${AN.test(label) ? 'an' : 'a'} ${label}`;
const percent = p => p > .999 ? '>99.9 %' : p < .001 ? '<0.1 %' : `${(Math.floor(1000*p + .5)/10).toFixed(1)} %`;

function oneOf(labels) {
  if (labels.length > 4) return `any of the ${labels.length} things that this model knows`;
  const words = labels.map(withArticle), last = words.pop();
  return `${words.join(', ')} or ${last}`;
}

function words({label, probability, probabilities, doubt}, labels) {
  if (doubt === 'unlike') return `This does not look like ${oneOf(labels)}`;
  if (!doubt) return `${label}, ${percent(probability)}`;
  const others = labels.map((o, i) => [o, probabilities[i]]).filter(([o]) => o !== label);
  const [rival] = others.reduce((most, o) => o[1] > most[1] ? o : most);
  return `Not sure, between ${label} and ${rival} (${label} ${percent(probability)})`;
}

// The probabilities to show, as [label, probability]: none where they mean nothing, and of many the five largest
function shownProbabilities({probabilities, doubt}, labels) {
  if (doubt === 'unlike') return [];
  const pairs = labels.map((o, i) => [o, probabilities[i]]);
  return pairs.length <= 6 ? pairs : pairs.sort((a, b) => b[1] - a[1]).slice(0, 5);
}

const forcedChoice = ({label, doubt}) => doubt === 'unlike' ? `If it had to be one of them: ${label}.` : '';
const tally = ({label, doubt}) => ({between: 'not sure', unlike: 'like none of them'})[doubt] ?? label;

// ---- What is shown

// `image` with only those places in light and colour that spoke for the answer
async function why(image, {values, width: w, height: h}, {size, resize_to: to, resize = {}}) {
  const bitmap = await createImageBitmap(image), {width, height} = bitmap;
  const side = square(width, height, to, resize.method);
  const [across, down] = [width, height].map(o => (side ?? o)*size/to);   // the network sees the middle
  const small = make('canvas', {width: w, height: h}), heat = new ImageData(w, h);
  // by the root, as cameras store light: a place that gave a quarter of what the first one gave is half as bright
  values.forEach((o, i) => heat.data.set([0, 0, 0, 255*Math.sqrt(o)], 4*i));
  small.getContext('2d').putImageData(heat, 0, 0);
  const mask = make('canvas', {width, height}).getContext('2d');
  mask.imageSmoothingQuality = 'high';
  mask.drawImage(small, (width - across)/2, (height - down)/2, across, down);
  const light = mask.getImageData(0, 0, width, height).data, context = paint(bitmap, width, height);
  const image = context.getImageData(0, 0, width, height), {data} = image;
  for (let i = 0; i < data.length; i += 4) {
    const grey = .4*(.299*data[i] + .587*data[i+1] + .114*data[i+2]), part = light[i+3]/255;
    for (let c = i; c < i + 3; c++) data[c] = part*data[c] + (1 - part)*grey;
  }
  context.putImageData(image, 0, 0);
  return jpeg(context);
}

const jpeg = context => new Promise(done => context.canvas.toBlob(done, 'image/jpeg', .85));

function preview(bitmap) {
  const scale = Math.min(1, PREVIEW/Math.max(bitmap.width, bitmap.height));
  return jpeg(paint(bitmap, ...[bitmap.width, bitmap.height].map(o => Math.max(1, Math.round(scale*o)))));
}

function bars(shown) {
  return make('dl', {}, ...shown.map(([label, p]) => {
    const bar = make('b', {});
    bar.style.width = `${100*p}%`;
    return make('div', {}, make('dt', {dir: 'auto', textContent: label}),
                make('dd', {}, make('i', {}, bar), make('span', {textContent: percent(p)})));
  }));
}

const showing = new Set();   // addresses of the images on the page
function show(img, blob) {
  if (showing.delete(img.src)) URL.revokeObjectURL(img.src);
  img.src = URL.createObjectURL(blob);
  showing.add(img.src);
}

function card(name, image, answer, model) {
  const img = make('img', {alt: name}), note = make('p', {className: 'small', dir: 'auto'});
  show(img, image);
  const button = make('button', {type: 'button', textContent: 'Why?', hidden: !answer.heat});
  button.append(make('span', {className: 'unseen', dir: 'auto', textContent: ` ${name}`}));
  button.setAttribute('aria-pressed', 'false');
  button.addEventListener('click', async () => {
    const asked = button.getAttribute('aria-pressed') === 'false';
    show(img, asked ? await why(image, answer.heat, model) : image);
    button.setAttribute('aria-pressed', asked);
    note.textContent = asked ? `Bright: what spoke for ${answer.label}. Dark and grey: what did not.` : '';
  });
  const text = make('h2', {className: answer.doubt ? 'unsure' : '', dir: 'auto'}, words(answer, model.labels));
  const shown = shownProbabilities(answer, model.labels);
  const below = shown.length ? bars(shown) : make('p', {className: 'small', dir: 'auto'}, forcedChoice(answer));
  return make('article', {}, img, make('div', {}, text, below,
              make('p', {className: 'small'}, make('bdi', {textContent: name})), button, note));
}

function refusal(name, reason) {
  return make('article', {className: 'error'}, make('p', {}, make('bdi', {textContent: name}), `: ${reason}`));
}

const ready = start();
let turn = 0;   // who chooses again does not wait for what was chosen before

async function predict(files, leftOut = 0) {
  const mine = ++turn, found = new Map(), results = get('results');
  results.replaceChildren();
  for (const o of showing) URL.revokeObjectURL(o);
  showing.clear();
  const count = what => found.set(what, (found.get(what) ?? 0) + 1);
  let model, last;
  try { model = await ready; } catch { return; }   // the page has said so
  for (const [i, file] of files.entries()) {
    report(files.length > 1 ? `Looking at image ${i + 1} of ${files.length} …` : 'Looking …');
    await new Promise(done => setTimeout(done));   // for the browser to draw, and for whoever chooses again
    if (mine !== turn) return;
    const shown = await one(file, model);
    if (mine !== turn) return;
    results.append(shown.card);
    count(shown.result);
    last = shown.words;
  }
  const text = files.length === 1 ? last : [...found].map(([o, n]) => `${n} ${o}`).join(', ');
  report(leftOut ? `${text}; left out, by their names no images: ${leftOut}` : text);
}

async function one(file, model) {
  const name = file.webkitRelativePath || file.name;
  try {
    const bitmap = await opened(file, model);
    try {
      const answer = answerOf(model, await run(model, pixelsOf(bitmap, model)));
      const said = words(answer, model.labels), result = tally(answer);
      return {card: card(name, await preview(bitmap), answer, model), result, words: said};
    } finally { bitmap.close(); }
  } catch (e) {
    const reason = e.known ? e.message : 'this browser cannot open it';
    return {card: refusal(name, reason), result: 'cannot be opened', words: `${name}: ${reason}`};
  }
}

// ---- What people do: choose, take, drop, paste

async function below(entry, files) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    if (file.name[0] === '.') return;
    files[file.type.startsWith('image/') || SUFFIX.test(file.name) ? 'images' : 'others'].push(file);
  } else {
    const reader = entry.createReader(), all = [];
    const some = () => new Promise((done, failed) => reader.readEntries(done, failed));   // a hundred at a time
    for (let more; (more = await some()).length;) all.push(...more);
    for (const o of all.sort((a, b) => a.name.localeCompare(b.name, undefined, {numeric: true}))) await below(o, files);
  }
}

async function dropped({items, files}) {
  const entries = [...items].map(o => o.webkitGetAsEntry?.()).filter(Boolean), plain = [...files];
  if (!entries.some(o => o.isDirectory))
    return plain.length ? predict(plain) : report('That was no file: save the image first, then drop its file here.');
  report('Reading the folder …');
  const found = {images: [], others: []};
  for (const o of entries) await below(o, found);
  found.images.length ? predict(found.images, found.others.length) : report('There is no image in this folder.');
}

for (const id of ['file', 'camera']) get(id).addEventListener('change', ({target}) => {
  if (target.files.length) predict([...target.files]);
  target.value = '';   // so that the same image can come again
});
const over = yes => document.body.classList.toggle('over', yes);
addEventListener('dragover', e => { e.preventDefault(); over(true); });
addEventListener('dragleave', e => { if (!e.relatedTarget) over(false); });
addEventListener('drop', e => { e.preventDefault(); over(false); dropped(e.dataTransfer); });
addEventListener('paste', ({clipboardData: {files}}) => {
  files.length ? predict([...files]) : report('There is no image in the clipboard.');
});

ready.then(() => { if (!turn) report('Ready.'); }, e => {
  const text = `The model cannot be loaded (${e.message}). Load the page again when there is a connection.`;
  get('status').replaceChildren(make('span', {className: 'error', textContent: e.known ? e.message : text}));
});
