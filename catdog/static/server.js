// The back end on the server: one request to /predict per image, and to /correct for what a visitor corrects.
'use strict';
const MAX_BYTES = Number(get('form').dataset.maxBytes);

async function send(path, fields) {
  const body = new FormData();
  for (const o of Object.entries(fields)) body.append(...o);
  let response;
  try {
    const headers = {Accept: 'application/json', 'X-Requested-With': 'catdog'};
    response = await fetch(path, {method: 'POST', body, headers});
  } catch { throw new Error('The connection broke. Try again in a moment, or with a smaller image.'); }
  const answer = await response.json().catch(() => ({}));   // a proxy may answer with HTML
  if (answer.predictions || answer.text) return answer;
  if (answer.error) throw new Error(answer.error);
  if (response.status === 413) return {predictions: [{error: 'too large for the server: choose a smaller image'}]};
  throw new Error(`The server did not answer (${response.status} ${response.statusText}). Try again in a moment.`);
}

async function predict(file, why = false) {
  if (file.size > MAX_BYTES - 10_000) return {error: `larger than ${Math.floor(MAX_BYTES/1e6)} MB`};
  const [found] = (await send('predict', {file, [why ? 'why' : 'image']: '1'})).predictions;
  return {...found, error: found.error?.replace(`${found.file}: `, '')};
}

connect({ready: Promise.resolve(), parallel: 4, predict,
         correct: async (file, label) => (await send('correct', {file, label})).text});
