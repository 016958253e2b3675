// A figure or a formula that is wider than the page is pushed sideways: with a finger, or here with the arrow keys.
(() => {
  const wide = '.bd-article figure, .bd-article mjx-container[display="true"]';
  const mark = () => document.querySelectorAll(wide).forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
  });
  addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    mark();
    addEventListener("resize", mark);
  });
})();
