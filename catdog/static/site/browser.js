// The back end in the browser: onnxruntime-web runs the model on pixels that are computed exactly as Pillow does it.
'use strict';
const runtime = get('runtime').dataset, model = JSON.parse(runtime.model);   // what the model says about itself
class ImageError extends Error {}

// ---- The model

async function load(url, integrity = '') {
  const response = await fetch(url, {integrity});
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Browsers run a module only if its host calls it JavaScript, and some hosts send no or another type
async function loadScript({src, integrity}) {
  try { return await import(src); }
  catch {
    const url = URL.createObjectURL(new Blob([await load(src, integrity)], {type: 'text/javascript'}));
    try { return await import(url); } finally { URL.revokeObjectURL(url); }
  }
}

// From here on the browser refuses to send or fetch anything: no image can leave the device
function lock() {
  const content = "default-src 'none'; script-src 'wasm-unsafe-eval'; style-src 'self'; img-src blob: data:; "
                + "manifest-src 'self'; worker-src 'self'; form-action 'none'; base-uri 'none'";
  const meta = make('meta', {content});
  meta.setAttribute('http-equiv', 'Content-Security-Policy');
  document.head.append(meta);
}

async function start() {
  const [ort, wasmBinary, bytes] = await Promise.all([
    loadScript(get('runtime')), load(runtime.wasm, runtime.wasmIntegrity), load('model.bin', runtime.modelIntegrity)]);
  Object.assign(ort.env.wasm, {numThreads: 1, wasmBinary});   // several threads would need special headers
  ort.env.logLevel = 'error';
  const session = await ort.InferenceSession.create(bytes, {executionProviders: ['wasm']});
  const outputs = ['logits', 'distance', 'activation'].filter(o => session.outputNames.includes(o));
  const shape = [1, model.size, model.size, 3];
  const run = pixels => session.run({pixels: new ort.Tensor('uint8', pixels, shape)}, outputs);
  await run(new Uint8Array(3*model.size**2));   // the first run takes longer
  if (document.readyState !== 'complete') await new Promise(done => addEventListener('load', done, {once: true}));
  try { navigator.serviceWorker.register('sw.js').catch(() => {}); }
  catch {}   // in a sandboxed frame and over http there is none: the page works, but not offline
  lock();
  return run;
}

const ready = start().catch(e => {
  throw new Error(location.protocol === 'file:' ? 'A browser runs the model only from a web server: type "python -m '
    + 'http.server" in this folder, and open http://localhost:8000'
    : `The model cannot be loaded (${e.message}). Load the page again when there is a connection.`);
});

// ---- Images

const MAX_PIXELS = 70e6, PREVIEW = 480, DAMAGED = 'a damaged image, or one too large for this browser';
// Formats that some browsers show and the server does not open; the sentences of catdog/core/images.py
const REFUSED = [[/^(\xff\x0a|\0\0\0\x0cJXL )/, 'a JPEG XL image: save it as JPEG first'],
  [/^(\0\0\0\x0cjP {2}|\xff\x4f\xff\x51)/, 'a JPEG 2000 image: save it as JPEG first'],
  [/^\0\0\x01\0/, 'an icon: save it as PNG first'],
  [/^(\xef\xbb\xbf)?(\s|<!--.*?-->|<\?.*?\?>)*<(!doctype )?(\w+:)?svg\b/is, 'an SVG drawing: save it as PNG or JPEG first']];
const convert = 'which this browser cannot open: save it as JPEG first';
const KINDS = [[/^(PK\x03\x04|\x1f\x8b)/, 'an archive: unpack it first'], [/^%PDF/, 'a PDF document, not an image'],
  [/^(\xef\xbb\xbf)?\s*(<!doctype html|<html|<head|<body)/i, 'a web page, not an image'],
  [/^....ftyp(hei|hev|mif1|msf1)/s, `a HEIC photo, ${convert}, or open this page in Safari`],
  [/^(II\*\0|MM\0\*)/, `a TIFF image, ${convert}`],
  [/^(\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM|....ftypavi[fs])/s, DAMAGED]];

async function startOf(file) {
  try { return new Uint8Array(await file.slice(0, 1024).arrayBuffer()); }
  catch { throw new ImageError('cannot be read'); }
}

const kindOf = (kinds, bytes) => kinds.find(o => o[0].test(String.fromCharCode(...bytes)))?.[1];

// Describe a file that begins with `bytes` and that this browser does not open as an image
function guess(bytes) {
  if (!bytes.length) return 'the file is empty';
  const found = kindOf(KINDS, bytes);
  if (found) return found;
  try {   // the last character may be incomplete
    if (!bytes.includes(0) && new TextDecoder('utf-8', {fatal: true}).decode(bytes, {stream: true}))
      return 'a text file, not an image';
  } catch {}
  return 'not an image in a format that this browser opens';
}

// `file` with its EXIF block made invalid, so that the browser does not rotate it
async function unturned(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const at = new TextDecoder('latin1').decode(bytes.subarray(0, 2**16)).indexOf('Exif\0\0');
  if (at >= 0) bytes[at] = 0;
  return new Blob([bytes]);
}

// Whether the PNG, AVIF or HEIC file that begins with `bytes` has colours that the server refuses; `_png_colours` and `_facts`
// in catdog/core/images.py
function hasRareColours(bytes) {
  if (bytes[0] !== 0x89) {
    const text = new TextDecoder('latin1').decode(bytes), codes = /colrnclx\0(.)\0(.)/s.exec(text)?.slice(1).join('');
    return codes && !/colr(prof|rICC)/.test(text) && !/^[\x01\x02\x05-\x07][\x01\x02\x04\x06\x0d-\x0f]$/.test(codes);
  }
  const view = new DataView(bytes.buffer), at = {}, primaries = [.3127, .329, .64, .33, .3, .6, .15, .06];
  for (let i = 8; i + 12 <= bytes.length; i += 12 + view.getUint32(i))   // chunk: position of its body
    at[String.fromCharCode(...bytes.subarray(i + 4, i + 8))] ??= i + 8;
  const numbers = (name, n) => Array.from({length: n}, (_, i) => view.getUint32(at[name] + 4*i)/100_000);
  if (at.cICP) return view.getUint32(at.cICP) !== 0x010d0001;
  if (at.iCCP || at.sRGB || !at.gAMA) return false;
  const [gamma] = numbers('gAMA', 1), points = at.cHRM ? numbers('cHRM', 8) : primaries;
  if (!gamma || !points.every(Boolean)) return false;
  return gamma < .1 || gamma > 10 || points.some((o, i) => Math.abs(o - primaries[i]) > .0002);
}

// Open the image in `file`: upright and in sRGB, or as it is stored for models that were trained so
async function opened(file, {opened: how} = {}) {
  const start = await startOf(file), refused = kindOf(REFUSED, start);
  if (refused) throw new ImageError(refused);
  const described = /^(\x89PNG|....ftyp(avi|hei|mif1|msf1))/s.test(String.fromCharCode(...start.subarray(0, 12)));
  if (described && hasRareColours(new Uint8Array(await file.slice(0, 2**20).arrayBuffer())))
    throw new ImageError('an image for HDR screens, or in rare colours: save it as JPEG first');
  const img = make('img', {src: URL.createObjectURL(file)});
  // An <img> knows its size before it decodes the pixels
  try { await new Promise((done, failed) => Object.assign(img, {onload: done, onerror: failed})); }
  catch { throw new ImageError(guess(start)); }
  finally { URL.revokeObjectURL(img.src); }
  const {naturalWidth: width, naturalHeight: height} = img;
  if (width*height > MAX_PIXELS)
    throw new ImageError(`${width} x ${height} pixels: more than the ${MAX_PIXELS/1e6} million that we open`);
  try {
    // The colours of what is half transparent are exact only if they are not multiplied by it beforehand
    if (how !== 'as stored') return await createImageBitmap(file, {premultiplyAlpha: 'none'});
    return await createImageBitmap(await unturned(file), {colorSpaceConversion: 'none'});
  } catch { throw new ImageError(DAMAGED); }
}

const contextOf = (width, height) => make('canvas', {width, height}).getContext('2d', {willReadFrequently: true});

// Protection against fingerprinting may replace the pixels of a canvas by noise. A changed bit here and there is harmless.
function checkCanvas() {
  const known = Uint8ClampedArray.from({length: 1024}, (_, i) => i%4 === 3 ? 255 : 7*i%256), context = contextOf(16, 16);
  context.putImageData(new ImageData(known, 16), 0, 0);
  const {data} = context.getImageData(0, 0, 16, 16);
  if (known.reduce((sum, o, i) => sum + Math.abs(o - data[i]), 0) > 2*known.length)
    throw new Error('This browser hides the pixels of images from pages (protection against fingerprinting): allow this '
                    + 'page to read canvas data and choose the image again, or use another browser.');
}

// Mean of each block of `k` by `k` RGBA pixels, rounded as by Pillow's `reduce`
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

// Strips of rows (or columns) of `bitmap`, on white and reduced by `k`: [index of the first row, number of rows, RGBA].
// In strips, so that a photo of 48 million pixels is not copied as a whole.
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

// Side of the square that an image is cropped or padded to, rounded as by fastai; undefined if it is neither
function square(width, height, to, method) {
  const choose = {crop: Math.min, pad: Math.max}[method];
  return choose && Math.trunc(choose(width/to, height/to)*to);
}

// Map an index in a cropped or padded side to its pixel in the original side of `n`; -1 for black padding
function placed(n, side, mode) {
  const offset = Math.trunc((n - side)/2);
  return i => {
    const at = i + offset;
    if (at >= 0 && at < n) return at;
    if (mode === 'zeros') return -1;
    if (mode === 'border' || n === 1) return Math.min(Math.max(at, 0), n - 1);
    const turn = ((at%(2*n - 2)) + 2*n - 2)%(2*n - 2);   // reflected without repeating the edge
    return Math.min(turn, 2*n - 2 - turn);
  };
}

// Pillow's antialiased bilinear filter from `side` pixels to the middle `size` of `to`: for each output pixel the
// indices and weights (fixed point, 22 bits) of its input pixels
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
    const kept = [...places.keys()].filter(j => places[j] >= 0);   // black padding adds nothing
    all.push([Int32Array.from(kept, j => places[j]), Int32Array.from(kept, j => whole[j])]);
  }
  return all;
}

// Apply the filter along one axis of RGB(A) `data`, whose pixels are `step` and whose lines `line` numbers apart
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

// Preprocess `bitmap`: uint8, shape (size,size,3). The same numbers as `pixels_of` in catdog/core/model_file.py
function pixelsOf(bitmap, {size, resize_to: to, min_side: enough, resize = {}}) {
  const short = Math.min(bitmap.width, bitmap.height), k = enough ? [8, 4, 2].find(k => short >= k*enough) ?? 1 : 1;
  const [width, height] = [bitmap.width, bitmap.height].map(o => Math.ceil(o/k));
  const side = square(width, height, to, resize.method);
  const lengths = [width, height].map(n => [n, side ?? n]);
  const [across, down] = lengths.map(([n, all]) => filter(all, to, size, placed(n, all, resize.pad_mode)));
  const out = new Uint8Array(3*size*size), [w, h] = [side ?? width, side ?? height];
  if (h > to && h - to > 2*(w - to)) {   // Pillow filters the columns of tall images first
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

function answerOf({labels, temperature = 1, limits, one_of}, {logits, distance}) {
  const scores = Array.from(logits.data, o => o/temperature), top = Math.max(...scores);
  const powers = scores.map(o => Math.exp(o - top)), sum = powers.reduce((a, b) => a + b), shares = powers.map(o => o/sum);
  const best = scores.indexOf(top), label = labels[best], probability = shares[best];
  const far = limits.distance !== null && !(distance.data[0] <= limits.distance);
  const never = limits.probability === 1 && limits.distance === 0;   // a model that is never sure
  const doubt = far && !never ? 'unlike' : far || probability < limits.probability ? 'between' : '';
  const rival = scores.reduce((found, o, i) => i !== best && (found < 0 || o > scores[found]) ? i : found, -1);
  const text = {unlike: `This does not look like ${one_of}`, '': `${label}, ${percent(probability)}`,
                between: `Not sure, between ${label} and ${labels[rival]} (${label} ${percent(probability)})`}[doubt];
  return {best, rival, label, probabilities: Object.fromEntries(labels.map((o, i) => [o, shares[i]])), doubt, text};
}

// Darken the image of `context` except where it spoke for label `best` and against label `rival`
function darken(context, {data: spoke, dims: [, , h, w]}, {best, rival}, {size, resize_to: to, resize = {}}) {
  const {width, height} = context.canvas, side = square(width, height, to, resize.method), n = w*h;
  const [across, down] = [width, height].map(o => (side ?? o)*size/to);   // the model sees the middle
  const values = Array.from({length: n}, (_, i) => Math.max(0, spoke[best*n + i] - spoke[rival*n + i]));
  const most = Math.max(1e-9, ...values), heat = new ImageData(w, h), small = contextOf(w, h), mask = contextOf(width, height);
  // square root, as in image files: a quarter of the light looks half as bright
  values.forEach((o, i) => { heat.data[4*i + 3] = 255*Math.sqrt(o/most); });
  small.putImageData(heat, 0, 0);
  mask.imageSmoothingQuality = 'high';
  mask.drawImage(small.canvas, (width - across)/2, (height - down)/2, across, down);
  const light = mask.getImageData(0, 0, width, height).data, image = context.getImageData(0, 0, width, height), {data} = image;
  for (let i = 0; i < data.length; i += 4) {
    const grey = .4*(.299*data[i] + .587*data[i+1] + .114*data[i+2]), part = light[i+3]/255;
    for (let c = i; c < i + 3; c++) data[c] = part*data[c] + (1 - part)*grey;
  }
  context.putImageData(image, 0, 0);
}

// `bitmap` on white, at most `side` pixels wide and high: the context of its canvas
function drawn(bitmap, side) {
  const scale = Math.min(1, side/Math.max(bitmap.width, bitmap.height));
  const context = contextOf(...[bitmap.width, bitmap.height].map(o => Math.max(1, Math.round(scale*o))));
  const {width, height} = context.canvas;
  Object.assign(context, {fillStyle: 'white', imageSmoothingQuality: 'high'}).fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return context;
}

const jpeg = ({canvas}, quality = .85) => new Promise(done => canvas.toBlob(done, 'image/jpeg', quality));

async function predict(file, why = false) {
  const run = await ready;
  await new Promise(done => setTimeout(done));   // let the browser paint
  checkCanvas();
  let bitmap;
  try {
    bitmap = await opened(file, model);
    const context = drawn(bitmap, PREVIEW), preview = why || jpeg(context);   // while the model runs
    const outputs = await run(pixelsOf(bitmap, model)), answer = answerOf(model, outputs);
    if (why) darken(context, outputs.activation, answer, model);
    const image = URL.createObjectURL(await (why ? jpeg(context) : preview));
    return why ? {why: image} : {...answer, image};
  } catch (e) { return {error: e instanceof ImageError ? e.message : 'this browser cannot open it'}; }
  finally { bitmap?.close(); }
}

// ---- Corrections: kept in the page, without metadata, until the visitor downloads them as one zip file

const MAX_KEPT = 1000, kept = new Map();   // name -> {path, bytes, crc}
let unsaved = false;

const CRC = Uint32Array.from({length: 256}, (_, n) => { for (let k = 8; k--;) n = n & 1 ? n >>> 1 ^ 0xedb88320 : n >>> 1; return n; });
const crc32 = bytes => ~bytes.reduce((sum, o) => sum >>> 8 ^ CRC[(sum ^ o) & 255], -1) >>> 0;

// `values` as little-endian numbers, each of as many bytes as its digit in `sizes`: 2 or 4
function packed(sizes, ...values) {
  const bytes = values.map((o, i) => [o, o >>> 8, o >>> 16, o >>> 24].slice(0, sizes[i]));
  return Uint8Array.from(bytes.flat());
}

// A zip file, not compressed, of {path, bytes, crc}
function zip(files) {
  const local = [], central = [], size = parts => parts.reduce((sum, o) => sum + o.length, 0);
  for (const {path, bytes, crc} of files) {
    const name = new TextEncoder().encode(path), at = size(local);
    // version 2.0, names in UTF-8, no compression, 1980-01-01
    const entry = packed('2222244422', 20, 2048, 0, 0, 33, crc, bytes.length, bytes.length, name.length, 0);
    central.push(packed('42', 0x02014b50, 20), entry, packed('22244', 0, 0, 0, 0, at), name);
    local.push(packed('4', 0x04034b50), entry, name, bytes);
  }
  const n = files.length, end = packed('42222442', 0x06054b50, 0, 0, n, n, size(central), size(local), 0);
  return new Blob([...local, ...central, end], {type: 'application/zip'});
}

async function keep(file, label) {
  if (/^\.|[/\\]/.test(label)) throw new Error('It cannot be kept: its label is no name of a folder.');
  if (kept.size >= MAX_KEPT) throw new Error(`It is not kept: there are ${MAX_KEPT} already. Download them, and load the page again.`);
  const bitmap = await opened(file), image = await jpeg(drawn(bitmap, 1024), .92);
  bitmap.close();
  const bytes = new Uint8Array(await image.arrayBuffer()), crc = crc32(bytes);
  const stem = [...file.name.replace(/\.\w+$/, '').replace(/[^\p{L}\p{M}\p{N} _-]/gu, '_')].slice(0, 50).join('');
  const name = `${stem}-${crc.toString(16).padStart(8, '0')}.jpg`;   // no two zip files have it for different images
  kept.set(name, {path: `${label}/${name}`, bytes, crc});
  get('corrections').hidden = false;
  get('download').textContent = `Download ${kept.size} correction${kept.size > 1 ? 's' : ''}`;
  unsaved = true;
  return `Added as ${label}: download the zip file below.`;
}

get('download').addEventListener('click', () => {
  const href = URL.createObjectURL(zip([...kept.values()]));
  make('a', {href, download: 'corrections.zip'}).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
  unsaved = false;
});
addEventListener('beforeunload', event => { if (unsaved) event.preventDefault(); });

connect({ready, parallel: 1, predict, correct: keep});
