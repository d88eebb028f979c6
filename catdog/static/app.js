// What no widget can say, because nothing reaches the app any more: it is gone, or an upload is too large to be sent
(({icon, most}) => {
  const {baseUrl, kernelId} = JSON.parse(document.getElementById('jupyter-config-data').textContent)
  const notice = document.createElement('div')
  document.body.prepend(notice)
  notice.className = 'catdog-notice'
  notice.setAttribute('role', 'alert')
  document.querySelector('link[rel=icon]').href = 'data:image/svg+xml,' + encodeURIComponent(icon)

  let failures = 0   // in a row; one may be a telephone that changes its network
  const look = async () => {
    document.querySelector('.catdog-status')?.setAttribute('role', 'status')   // what it says is read aloud
    const {ok, status} = await fetch(`${baseUrl}api/kernels/${kernelId}`, {cache: 'no-store'}).catch(() => ({}))
    failures = ok ? 0 : failures + 1
    if (status != 404 && failures < 3) return
    clearInterval(timer)
    document.querySelectorAll('.catdog').forEach(o => o.inert = true)
    notice.innerHTML = 'The connection to the app is gone. <a href="">Reload the page.</a>'
  }
  const timer = setInterval(look, 4000)

  // The field of an upload button does not stand in the page; its click is where we meet it
  const click = HTMLInputElement.prototype.click
  const check = event => {
    const bytes = [...event.target.files].reduce((sum, o) => sum + o.size, 0)
    if (bytes <= most) return
    event.stopImmediatePropagation()
    const mb = n => `${Math.ceil(n/2**20)} MB`
    notice.textContent = `${mb(bytes)} are too much at once: choose fewer pictures, ${mb(most)} together.`
  }
  HTMLInputElement.prototype.click = function() {
    if (this.type == 'file') this.addEventListener('change', check, true)   // added once only
    click.call(this)
  }
  addEventListener('click', event => { if (event.target.closest('.catdog')) notice.textContent = '' }, true)
})
