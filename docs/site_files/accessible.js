// What the theme leaves out for keyboards and screen readers: names for its regions, and focus for code that scrolls.
function complete() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search")
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => nav.setAttribute("aria-label", `Code ${number + 1}`))
  document.querySelectorAll(".md-typeset pre > code").forEach((code) => {
    if (code.scrollWidth > code.clientWidth) code.setAttribute("tabindex", "0")
  })
}
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true })
addEventListener("resize", complete)
complete()
