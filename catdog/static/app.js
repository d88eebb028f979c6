// What widgets cannot do: report a lost connection or upload, and accept images that are dropped, pasted or
// photographed. At most `most` bytes per upload, if known, and `many` images
(({icon, most, many}) => {
  // One script for all apps of the page: the last one, since a saved notebook may contain an old version
  window.catdogScript?.abort()
  const {signal} = window.catdogScript = new AbortController(), first = {capture: true, signal}
  const page = document.getElementById('jupyter-config-data')
  const {baseUrl, kernelId} = page ? JSON.parse(page.textContent) : {}
  const alone = 'voila' in document.body.dataset   // Voilà's page is the app's alone; a notebook's is not
  const sleep = seconds => new Promise(done => setTimeout(done, 1000*seconds))
  const mb = bytes => `${Math.ceil(bytes/2**20)} MB`

  // Show `text` as a notice at the top of `place`, an app or the page; remove the notice if it is empty
  const say = (place, text, role = 'alert') => {
    let notice = place.querySelector(':scope > .catdog-notice')
    if (!text) return notice?.remove()
    if (!notice) {
      notice = document.createElement('div')
      notice.className = 'catdog-notice'
      place.prepend(notice)
    }
    notice.setAttribute('role', role)
    if (notice.firstChild?.data != text) notice.textContent = text
    return notice
  }

  // The connection

  const GONE = 'The connection to the app is lost. '
  const BROKEN = 'The connection to the app is interrupted. It resumes once the network is back. '
  const REFUSED = 'The page is here, but its live connection to the app (a WebSocket) is refused. '
    + 'For the administrator: let the proxy before the app pass WebSockets on, and keep the Host header. '

  const showConnection = text => {
    const notice = say(document.body, text)
    if (notice && !notice.querySelector('a')) notice.insertAdjacentHTML('beforeend', '<a href="">Reload the page.</a>')
    document.querySelectorAll('.catdog').forEach(o => o.inert = Boolean(text))
  }

  let misses = 0, before, connected = false   // misses in a row; one may be a phone that changes its network
  // Check once; false if the kernel has ended
  const look = async () => {
    const options = {cache: 'no-store', signal: AbortSignal.timeout(9000)}
    const answer = await fetch(`${baseUrl}api/kernels/${kernelId}`, options).catch(() => null)
    const {connections} = await answer?.json().catch(() => null) ?? {}
    const kernel = window.jupyterapp?.widgetManager?.kernel, status = kernel?.connectionStatus ?? 'connected'
    const alive = connections > 0 && status == 'connected'
    misses = alive ? 0 : misses + 1
    connected ||= alive
    // Jupyter retries less and less often, then gives up; now the server is back
    if (!alive && answer?.ok && (status == 'disconnected' || before == false)) kernel?.reconnect().catch(() => {})
    before = Boolean(answer?.ok)
    if (answer?.status == 404) return showConnection(GONE), false
    const loading = !connected && !(kernel && document.readyState == 'complete')   // scripts, perhaps on a slow line
    if (misses < (loading ? 12 : 3)) { if (alive) showConnection('') }
    else showConnection(!answer?.ok ? GONE : connected ? BROKEN : REFUSED)
    return true
  }
  const watch = async () => { while (await look()) await sleep(4) }
  if (alone) {
    document.querySelector('link[rel=icon]').href = 'data:image/svg+xml,' + encodeURIComponent(icon)
    watch()
  }
  const roles = setInterval(() => {   // for screen readers; the question becomes the page's title
    document.querySelectorAll('.catdog-status').forEach(o => o.setAttribute('role', 'status'))
    if (!alone) return
    document.querySelector('.catdog')?.setAttribute('role', 'main')
    document.title = document.querySelector('.catdog h1')?.textContent || document.title
  }, 1000)
  signal.addEventListener('abort', () => clearInterval(roles))

  // Uploads

  const counts = app => ({...app.querySelector('[data-uploads]')?.dataset})
  // What went wrong with a later upload stays
  const progress = (app, text) => app.querySelector(':scope > [role=alert]') || say(app, text, 'status')

  // Jupyter closes the connection on a message that is too large, and opens another. A probe sent after the upload is
  // answered after it, by the same thread of the kernel: if it is answered and the upload has not arrived, that is lost
  const follow = async (app, button, bytes) => {
    const start = counts(app)
    // the button's counter increases when the upload is sent
    await new Promise(sent => new MutationObserver((_, observer) => {
      observer.disconnect()
      sent()
    }).observe(button, {childList: true}))
    while (app.isConnected) {
      app.querySelector('.catdog-probe').click()
      await sleep(1)
      const now = counts(app)
      if (now.uploads != start.uploads) return progress(app, '')
      if (now.probes != start.probes) {
        app.querySelector('.catdog-lost').click()
        return say(app, `${mb(bytes)} did not arrive: that is more than Jupyter takes at once. `
          + 'Choose smaller images, or fewer, or start it with "make lab", which lets 64 MB through.')
      }
      progress(app, `Sending ${mb(bytes)} ...`)
    }
  }

  const check = (button, event) => {
    const app = button.closest('.catdog'), bytes = [...event.target.files].reduce((sum, o) => sum + o.size, 0)
    if (!most || bytes <= most) return follow(app, button, bytes)
    event.stopImmediatePropagation()
    say(app, `${mb(bytes)} are too much at once: choose fewer images, ${mb(most)} together.`)
  }

  // The input of an upload button is not in the page; we get hold of it when the button is clicked
  const met = new WeakSet()
  let meeting = false
  const fieldOf = button => {
    const {click} = HTMLInputElement.prototype
    let field
    HTMLInputElement.prototype.click = function() { field = this }
    meeting = true
    try { button.click() } finally {
      HTMLInputElement.prototype.click = click
      meeting = false
    }
    if (field && !met.has(field)) {
      met.add(field)
      field.addEventListener('change', event => check(button, event), first)
      if (button.matches('.catdog-camera')) field.setAttribute('capture', 'environment')
    }
    return field
  }
  addEventListener('click', event => {
    const app = event.target.closest?.('.catdog')
    if (!app || meeting) return
    say(app, '')
    const button = event.target.closest('.catdog-upload, .catdog-camera')
    if (button) fieldOf(button)
  }, first)

  // Images that are dropped or pasted: anywhere on the page, or on an app in a notebook

  const appAt = target => target.closest?.('.catdog') ?? (alone ? document.querySelector('.catdog') : null)

  const take = (app, files) => {
    if (!files.length) throw Error('This is a link, not an image: save the image and choose its file, or paste it.')
    const field = fieldOf(app.querySelector('.catdog-upload')), all = new DataTransfer()
    for (const o of files) all.items.add(o)
    field.files = all.files
    field.dispatchEvent(new Event('change'))
  }

  const isImage = o => o.type.startsWith('image/') || /\.(jpe?g|png|gif|webp|avif|bmp|tiff?|hei[cf])$/i.test(o.name)
  async function* filesBelow(entry) {
    if (entry.isFile) { yield await new Promise((found, failed) => entry.file(found, failed)); return }
    const reader = entry.createReader(), some = () => new Promise((found, failed) => reader.readEntries(found, failed))
    for (let entries; (entries = await some()).length;)
      for (const o of entries) if (!o.name.startsWith('.')) yield* filesBelow(o)
  }
  const imagesIn = async folder => {
    const found = [], name = `in the folder ${folder.name}`
    for await (const o of filesBelow(folder)) if (isImage(o) && found.push(o) > many) break   // one more is enough
    if (!found.length) throw Error(`There are no images ${name}.`)
    if (found.length > many) throw Error(`There are more than ${many} images ${name}: drop at most ${many}.`)
    return found
  }

  const brings = ({dataTransfer: o}) => o?.types.includes('Files') || o?.types.includes('text/uri-list')
  const mark = app => document.querySelectorAll('.catdog').forEach(o => o.classList.toggle('catdog-over', o == app))
  for (const kind of ['dragenter', 'dragover']) addEventListener(kind, event => {
    const app = appAt(event.target)
    mark(brings(event) ? app : null)
    if (!app || !brings(event)) return
    event.preventDefault()
    event.stopPropagation()
  }, first)
  addEventListener('dragleave', event => { if (!event.relatedTarget) mark(null) }, first)
  addEventListener('drop', async event => {
    const app = appAt(event.target)
    mark(null)
    if (!app || !brings(event)) return
    event.preventDefault()
    event.stopPropagation()
    if (app.inert) return
    say(app, '')
    // the dropped data is gone after the first await
    const entries = [...event.dataTransfer.items].filter(o => o.kind == 'file').map(o => o.webkitGetAsEntry?.())
    const files = [...event.dataTransfer.files].filter((_, i) => !entries[i]?.isDirectory)
    const folders = entries.filter(o => o?.isDirectory)
    try { take(app, [...files, ...(await Promise.all(folders.map(imagesIn))).flat()]) }
    catch (error) { say(app, error.message || 'The folder cannot be read: choose the images in it.') }
  }, first)
  addEventListener('paste', event => {
    const app = appAt(event.target)
    if (!app || app.inert || !event.clipboardData?.files.length) return
    event.preventDefault()
    event.stopPropagation()
    say(app, '')
    take(app, event.clipboardData.files)
  }, first)
})
