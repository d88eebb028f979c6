// The service worker: keeps the files of this page, so that it opens offline. Each version has a cache of its own.
'use strict';
const files = {{ files | tojson(1) }};   // URL -> its integrity hash, or '' where a host may change the file
const prefix = registration.scope + ' ', cacheName = prefix + '{{ version }}';

async function fetched(url, integrity) {
  const fresh = () => fetch(url, {integrity, cache: 'reload'});
  // What the page has just loaded is in the browser's cache; an old copy has another hash
  const response = integrity ? await fetch(url, {integrity, cache: 'force-cache'}).catch(fresh) : await fresh();
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  return response;
}

async function install() {
  const cache = await caches.open(cacheName);
  await Promise.all(Object.entries(files).map(async o => cache.put(o[0], await fetched(...o))));
  await skipWaiting();
}

async function activate() {
  const old = (await caches.keys()).filter(o => o.startsWith(prefix) && o !== cacheName);
  await Promise.all(old.map(o => caches.delete(o)));
}

async function answer(request) {
  const cache = await caches.open(cacheName), path = new URL(request.url).pathname.replace(/index\.html$/, '');
  const page = request.mode === 'navigate' && path === new URL('./', location).pathname;
  return (await cache.match(page ? './' : request)) ?? fetch(request);
}

addEventListener('install', event => event.waitUntil(install()));
addEventListener('activate', event => event.waitUntil(activate()));
addEventListener('fetch', event => { if (event.request.method === 'GET') event.respondWith(answer(event.request)); });
