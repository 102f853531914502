// `mathjax-3.2.2/tex-svg.js` is the file of that name in release 3.2.2 of MathJax: 2 MB, loaded by pages with maths only.
window.MathJax = {
  tex: {
    inlineMath: [["\\(", "\\)"]],
    displayMath: [["\\[", "\\]"]],
    processEscapes: true,
    processEnvironments: true,
    // Unknown macros are shown as errors; MathJax would look for files that are not here.
    packages: { "[-]": ["autoload", "require"] },
  },
  options: {
    ignoreHtmlClass: ".*|",
    processHtmlClass: "arithmatex",
    // Its speech engine comes from another host.
    enableMenu: false,
  },
};

if (document.querySelector(".arithmatex")) {
  const script = document.createElement("script");
  script.src = new URL("mathjax-3.2.2/tex-svg.js", document.currentScript.src);
  document.head.append(script);
}
