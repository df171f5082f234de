// Runs before the page is drawn, so that a chosen theme does not flash. Not a module for that reason.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("hearth.theme");
  } catch {
    // A browser that keeps nothing follows the system's theme.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
