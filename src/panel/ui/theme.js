// A classic script in the head: it runs before the first paint, so the page never flashes in the other theme.
(() => {
  let theme = null;
  // Storage can be blocked by the browser; the panel then follows the system.
  try {
    theme = localStorage.getItem('portcullis-theme');
  } catch {
    /* follows the system */
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
