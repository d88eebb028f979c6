// The page works without this file. With it: previews, drag and drop, and results without a reload.
'use strict';
const get = id => document.getElementById(id);
const form = get('form'), file = get('file'), drop = get('drop'), preview = get('preview'), button = get('predict');
const message = get('status'), results = get('results');
document.documentElement.classList.add('script');

function item(picture) {
  const li = document.createElement('li'), img = document.createElement('img'), url = URL.createObjectURL(picture);
  img.alt = '';
  img.src = url;
  img.onload = () => URL.revokeObjectURL(url);
  img.onerror = () => {   // the server will say why
    URL.revokeObjectURL(url);
    img.replaceWith(Object.assign(document.createElement('span'), {className: 'frame', textContent: '?'}));
  };
  li.append(img, picture.name);
  li.title = picture.name;
  return li;
}

function tooMuch() {
  const bytes = [...file.files].reduce((sum, o) => sum + o.size, 0);
  if (file.files.length > form.dataset.maxFiles) return `Choose at most ${form.dataset.maxFiles} pictures at once.`;
  if (bytes > form.dataset.maxBytes) return `Together these are more than ${Math.floor(form.dataset.maxBytes/1e6)} MB: choose fewer or smaller pictures.`;
  return '';
}

function chosen() {
  const few = [...file.files].slice(0, form.dataset.maxFiles);
  preview.replaceChildren(...few.map(item));
  message.textContent = tooMuch() || (few.length ? `${few.length} picture${few.length > 1 ? 's' : ''} chosen` : '');
}
file.addEventListener('change', chosen);

for (const kind of ['dragenter', 'dragover']) drop.addEventListener(kind, e => { e.preventDefault(); drop.classList.add('over'); });
for (const kind of ['dragleave', 'drop']) drop.addEventListener(kind, () => drop.classList.remove('over'));
drop.addEventListener('drop', e => {
  e.preventDefault();
  if (e.dataTransfer.files.length) { file.files = e.dataTransfer.files; chosen(); }
});

form.addEventListener('submit', async e => {
  e.preventDefault();
  if ((message.textContent = tooMuch())) return;
  button.disabled = true;
  message.textContent = 'Looking…';
  try {
    const answer = await fetch(form.action, {method: 'POST', body: new FormData(form), headers: {Accept: 'text/html'}});
    const page = new DOMParser().parseFromString(await answer.text(), 'text/html');
    const found = page.getElementById('results');
    if (!found) throw new Error(answer.statusText);
    results.replaceChildren(...found.children);
    message.textContent = '';
    if (answer.ok) { form.reset(); chosen(); }
    results.focus({preventScroll: true});
    results.scrollIntoView({behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth', block: 'nearest'});
  } catch (err) {
    message.textContent = `The server did not answer (${err.message}). Try again in a moment.`;
  } finally { button.disabled = false; }
});
