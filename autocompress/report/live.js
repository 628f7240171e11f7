// A page served during a search: it reloads after a change and restores scroll position and open cards;
// filter, limits, axes and pins are in its address.
(() => {
  "use strict";
  const STATE_KEY = "autocompress-live";
  const pane = document.createElement("p");
  pane.className = "live-note";
  pane.setAttribute("role", "status");
  pane.textContent = "Live: this page updates while the search runs.";
  document.querySelector("header").prepend(pane);

  addEventListener("ready", () => {
    const state = JSON.parse(sessionStorage.getItem(STATE_KEY) || "null");
    if (!state) return;
    for (const id of state.open) document.getElementById(id)?.setAttribute("open", "");
    scrollTo(0, state.top);
  });
  function saveState() {
    const open = [...document.querySelectorAll("details[open][id]")].map((details) => details.id);
    sessionStorage.setItem(STATE_KEY, JSON.stringify({ open, top: scrollY }));
  }

  // Do not reload while the reader moves the mouse, scrolls or types.
  let lastInput = 0;
  for (const event of ["pointermove", "keydown", "input", "wheel", "touchstart"]) {
    addEventListener(event, () => { lastInput = Date.now(); }, { passive: true });
  }
  const shown = document.querySelector("meta[name=version]").content;
  async function poll() {
    try {
      const version = await (await fetch("version", { cache: "no-store" })).text();
      if (version !== shown && Date.now() - lastInput > 1500) {
        saveState();
        location.reload();
        return;
      }
      // While the reader is busy, the page still shows what was before the end: it asks again.
      if (version === shown && version.startsWith("ended")) {
        pane.textContent = "The search has ended: these are its final results.";
        return;
      }
    } catch {
      pane.textContent = "The server of this page has stopped.";
      return;
    }
    setTimeout(poll, 2000);
  }
  poll();
})();
