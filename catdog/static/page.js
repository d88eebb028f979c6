// The page works without this file. With it: previews, drag and drop, pasting, the camera, and answers without a reload.
'use strict';
const get = id => document.getElementById(id);
const form = get('form'), file = get('file'), camera = get('camera'), drop = get('drop'), preview = get('preview');
const button = get('predict'), message = get('status'), results = get('results');
const most = Number(form.dataset.maxFiles), mostBytes = Number(form.dataset.maxBytes);
let sent = [];   // the images whose results are shown
document.documentElement.classList.add('script');

// Choosing images

function item(image) {
  const li = document.createElement('li'), img = document.createElement('img'), url = URL.createObjectURL(image);
  img.alt = '';
  img.src = url;
  img.onload = () => URL.revokeObjectURL(url);
  img.onerror = () => {   // the server will say why
    URL.revokeObjectURL(url);
    img.replaceWith(Object.assign(document.createElement('span'), {className: 'frame', textContent: '?'}));
  };
  li.append(img, image.name);
  li.title = image.name;
  return li;
}

function tooMuch() {
  const bytes = [...file.files].reduce((sum, o) => sum + o.size, 0);
  if (file.files.length > most) return `Choose at most ${most} images at once.`;
  if (bytes > mostBytes) return `Together these are more than ${Math.floor(mostBytes/1e6)} MB: choose fewer or smaller images.`;
  return '';
}

function chosen() {
  const few = [...file.files].slice(0, most);
  preview.replaceChildren(...few.map(item));
  message.textContent = tooMuch() || (few.length ? `${few.length} image${few.length > 1 ? 's' : ''} chosen` : '');
}
file.addEventListener('change', chosen);

function choose(images) {
  const all = new DataTransfer();
  for (const o of images) all.items.add(o);
  file.files = all.files;
  chosen();
}

get('photo').addEventListener('click', () => camera.click());
camera.addEventListener('change', () => {
  if (camera.files.length) choose(camera.files);
  camera.value = '';
});

// Dropped and pasted ones

const isImage = o => o.type.startsWith('image/') || /\.(jpe?g|png|gif|webp|avif|bmp|tiff?|hei[cf])$/i.test(o.name);

async function* filesBelow(entry) {
  if (entry.isFile) { yield await new Promise((found, failed) => entry.file(found, failed)); return; }
  const reader = entry.createReader(), some = () => new Promise((found, failed) => reader.readEntries(found, failed));
  for (let entries; (entries = await some()).length;) for (const o of entries) if (!o.name.startsWith('.')) yield* filesBelow(o);
}

// The images in a folder, but one more than may be sent is enough
async function imagesIn(folder) {
  const found = [];
  for await (const o of filesBelow(folder)) if (isImage(o) && found.push(o) > most) break;
  if (!found.length) throw new Error(`There are no images in the folder ${folder.name}.`);
  if (found.length > most) throw new Error(`There are more than ${most} images in the folder ${folder.name}: drop at most ${most}.`);
  return found;
}

async function chooseDropped(items, files) {
  // what was dropped is only there until this handler waits for something
  const entries = [...items].filter(o => o.kind === 'file').map(o => o.webkitGetAsEntry?.());
  const folders = entries.filter(o => o?.isDirectory), plain = [...files].filter((_, i) => !entries[i]?.isDirectory);
  try { choose([...plain, ...(await Promise.all(folders.map(imagesIn))).flat()]); }
  catch (err) {
    choose([]);
    message.textContent = err.message || 'The folder cannot be read: choose the images in it.';
  }
}

const brings = e => e.dataTransfer?.types.includes('Files');
for (const kind of ['dragenter', 'dragover']) document.addEventListener(kind, e => {
  if (!brings(e)) return;
  e.preventDefault();
  drop.classList.add('over');
});
document.addEventListener('dragleave', e => { if (!e.relatedTarget) drop.classList.remove('over'); });
document.addEventListener('drop', e => {
  drop.classList.remove('over');
  if (!brings(e)) return;
  e.preventDefault();
  chooseDropped(e.dataTransfer.items, e.dataTransfer.files);
});
document.addEventListener('paste', e => {
  if (!e.clipboardData?.files.length) return;
  e.preventDefault();
  choose(e.clipboardData.files);
});

// Asking

// The results that the server's page has about `images`, and whether they are answers
async function ask(images, why) {
  const body = new FormData();
  for (const o of images) body.append('file', o);
  if (why) body.append('why', '1');
  let answer;
  try { answer = await fetch(form.action, {method: 'POST', body, headers: {Accept: 'text/html'}}); }
  catch { throw new Error('The connection broke. Try again in a moment, or with a smaller image.'); }
  const found = new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById('results');
  if (found) return {found: [...found.children], ok: answer.ok};
  // the answer is not ours, but that of a proxy on the way
  if (answer.status === 413) throw new Error('This is too large for the server: choose fewer or smaller images.');
  throw new Error(`The server did not answer (${answer.status} ${answer.statusText}). Try again in a moment.`);
}

function whyButton(article, i) {
  const why = Object.assign(document.createElement('button'), {type: 'button', className: 'quiet', textContent: 'Why?'});
  why.addEventListener('click', async () => {
    why.disabled = true;
    try {
      const [first] = (await ask([sent[i]], true)).found, part = first?.querySelector('.why');
      if (!part) throw new Error(first?.textContent.trim() || 'The server cannot say why.');
      why.replaceWith(part);
      part.focus({preventScroll: true});
    } catch (err) {
      message.textContent = err.message;
      why.disabled = false;
    }
  });
  article.querySelector('.answer')?.append(why);
}

form.addEventListener('submit', async e => {
  e.preventDefault();
  if ((message.textContent = tooMuch())) return;
  button.disabled = true;
  message.textContent = 'Looking…';
  const images = [...file.files];
  try {
    const {found, ok} = await ask(images);
    results.replaceChildren(...found);
    sent = images;
    results.querySelectorAll('article').forEach(whyButton);
    message.textContent = '';
    if (ok) { form.reset(); chosen(); }
    results.focus({preventScroll: true});
    results.scrollIntoView({behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth', block: 'nearest'});
  } catch (err) { message.textContent = err.message; }
  finally { button.disabled = false; }
});
