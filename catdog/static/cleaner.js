// Keys for the cards of the cleaner and the labeller: 1 to 9 or the first letter chooses a label, 0 keeps, Delete
// removes, the arrows left and right move between cards, Enter accepts the page. Keys that come while a page is being
// turned wait for the next one
(() => {
  window.catdogKeys?.abort()   // one script for all of them; a saved notebook may contain an old version
  const {signal} = window.catdogKeys = new AbortController(), first = {capture: true, signal}
  const menus = pages => [...pages.querySelectorAll('.cd-card select')]
  const turns = pages => pages.querySelector('[data-turn]')?.dataset
  const ours = key => /^[\p{L}\p{N}]$/u.test(key) || ['Delete', 'Enter', 'ArrowLeft', 'ArrowRight'].includes(key)
  let turning   // {pages, turn, menu, keys} while a page is being turned

  // Choose what `key` stands for in `menu`, by the same events as a click
  const choose = (menu, key) => {
    const texts = [...menu.options].map(o => o.text), labels = texts.filter(o => !/^<.*>$/.test(o))
    const same = labels.filter(o => o.toLowerCase().startsWith(key.toLowerCase()))
    const text = key == '0' ? '<Keep>' : key == 'Delete' ? '<Delete>' : /^[1-9]$/.test(key) ? labels[key - 1]
      : same[(same.indexOf(menu.value) + 1)%same.length] ?? same[0]
    if (!texts.includes(text)) return false
    if (menu.value == text) menu.closest('.cd-card').querySelector('.cd-agree').click()   // no change, but an answer
    else {
      menu.value = text
      menu.dispatchEvent(new Event('change', {bubbles: true}))
    }
    return same.length < 2 || /^[0-9]$/.test(key) || key == 'Delete'   // one of several with this letter: stay
  }

  const press = (pages, menu, key) => {
    const all = menus(pages), i = all.indexOf(menu)
    const forward = ['.cd-agree-all', '.cd-next'].map(o => pages.querySelector(o)).find(o => o?.offsetParent && !o.disabled)
    if (key == 'Enter') {
      if (!forward) return
      turning = {pages, turn: turns(pages)?.turn, menu: all[0], keys: []}
      forward.click()
      wait(turning, Date.now() + 60_000)
    } else if (key == 'ArrowLeft' || key == 'ArrowRight') all.at(i < 0 ? -1 : Math.max(0, i + (key == 'ArrowLeft' ? -1 : 1)))?.focus()
    else if (menu && choose(menu, key)) {
      pages.tabIndex = -1   // takes the focus after the last card, where a button may disappear
      ;(all[i + 1] ?? pages).focus()
    }
  }

  // The cards are made anew in the browser some time after the kernel has turned the page
  const wait = (mine, until) => {
    const {pages, turn, menu, keys} = mine, now = turns(pages), all = menus(pages)
    if (turning != mine || !pages.isConnected || Date.now() > until) { if (turning == mine) turning = null; return }
    if (now?.turn == turn || all.length != now?.cards || all[0] == menu && menu) {
      setTimeout(wait, 20, mine, until)
      return
    }
    turning = null
    all[0]?.focus()
    while (keys.length && !turning) press(pages, document.activeElement.matches?.('.cd-card select') && document.activeElement, keys.shift())
    if (turning) turning.keys.push(...keys)
  }

  addEventListener('keydown', event => {
    const {target, key} = event
    if (event.ctrlKey || event.metaKey || event.altKey || !ours(key)) return
    const pages = target.closest?.('.cd-review'), menu = target.matches?.('.cd-card select')
    const forward = target == pages || target.matches?.('.cd-agree-all, .cd-next') && key == 'Enter'
    const lost = turning && (target == document.body || target.closest?.('.jp-Notebook') && !target.matches('input, textarea, [contenteditable]'))
    if (!lost && !(pages && (menu || forward))) return
    event.preventDefault()
    event.stopImmediatePropagation()
    if (turning) turning.keys.push(key)
    else press(pages, menu && target, key)
  }, first)

  // The second click of a double click would accept, undo or take back what nobody has looked at
  addEventListener('click', event => {
    const button = event.target.closest?.('.cd-review button')
    if (event.detail > 1 && button && !/[‹›]/.test(button.textContent)) event.stopImmediatePropagation()
  }, first)

  const roles = setInterval(() =>   // for screen readers
    document.querySelectorAll('.cd-status:not([role])').forEach(o => o.setAttribute('role', 'status')), 1000)
  signal.addEventListener('abort', () => clearInterval(roles))
})()
