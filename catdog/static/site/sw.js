// The service worker: keeps this page's files, so that it opens without a network. Another version is another cache.
'use strict';
const files = {{files}};   // address -> what the file must hash to, or '' where a host may add to it
const mine = registration.scope + ' ', cacheName = mine + '{{version}}';

async function fetched(url, integrity) {
  const fresh = () => fetch(url, {integrity, cache: 'reload'});
  // What the page has just loaded need not come over the network again; an old copy has another hash
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
  const old = (await caches.keys()).filter(o => o.startsWith(mine) && o !== cacheName);
  await Promise.all(old.map(o => caches.delete(o)));
}

async function answer(request) {
  const cache = await caches.open(cacheName);
  const path = new URL(request.url).pathname.replace(/index\.html$/, '');
  const page = request.mode === 'navigate' && path === new URL('./', location).pathname;
  return (await cache.match(page ? './' : request)) ?? fetch(request);
}

addEventListener('install', event => event.waitUntil(install()));
addEventListener('activate', event => event.waitUntil(activate()));
addEventListener('fetch', event => { if (event.request.method === 'GET') event.respondWith(answer(event.request)); });
