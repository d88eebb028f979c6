// The back end on the server: one request to /predict per image.
'use strict';
const form = get('form'), MAX_BYTES = Number(form.dataset.maxBytes);

async function predict(file, why = false) {
  if (file.size > MAX_BYTES - 10_000) return {error: `larger than ${Math.floor(MAX_BYTES/1e6)} MB`};
  const body = new FormData();
  body.append('file', file);
  body.append(why ? 'why' : 'image', '1');
  let response;
  try { response = await fetch(form.action, {method: 'POST', body, headers: {Accept: 'application/json'}}); }
  catch { throw new Error('The connection broke. Try again in a moment, or with a smaller image.'); }
  const answer = await response.json().catch(() => ({}));   // a proxy may answer with HTML
  const found = answer.predictions?.[0];
  if (found) return {...found, error: found.error?.replace(`${found.file}: `, '')};
  if (answer.error) throw new Error(answer.error);
  if (response.status === 413) return {error: 'too large for the server: choose a smaller image'};
  throw new Error(`The server did not answer (${response.status} ${response.statusText}). Try again in a moment.`);
}

connect({ready: Promise.resolve(), parallel: 4, predict});
