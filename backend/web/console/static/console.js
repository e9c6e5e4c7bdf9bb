// The console's pages: the theme of the system, and fragments that refresh themselves.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const setTheme = () => {
  document.documentElement.dataset.bsTheme = dark.matches ? "dark" : "light";
};
setTheme();
dark.addEventListener("change", setTheme);

// Nothing is replaced under the hands of somebody who marks text or fills a form in.
function isInUse(region) {
  const focused = document.activeElement;
  const writes = region.contains(focused) && focused.matches("input, select, textarea");
  const marked = document.getSelection();
  return writes || (marked && !marked.isCollapsed && region.contains(marked.anchorNode));
}

async function refresh(region) {
  const answer = await fetch(region.dataset.live, { cache: "no-store" });
  if (answer.redirected) {
    // The session has ended: the page itself leads to the login.
    window.location.reload();
    return;
  }
  if (!answer.ok) return;
  const content = await answer.text();
  if (content === region.dataset.shown || isInUse(region)) return;
  const focused = region.contains(document.activeElement) ? document.activeElement.id : "";
  region.dataset.shown = content;
  region.innerHTML = content;
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

document.addEventListener("DOMContentLoaded", () => {
  const region = document.querySelector("[data-live]");
  if (!region) return;
  const button = document.querySelector("[data-pause]");
  let paused = false;
  button.hidden = false;
  button.addEventListener("click", () => {
    paused = !paused;
    button.textContent = paused ? "Go on updating" : "Pause updates";
  });
  const turn = async () => {
    // A server that restarts is asked again at the next turn.
    if (!paused && !document.hidden) await refresh(region).catch(() => {});
    window.setTimeout(turn, Number(region.dataset.every));
  };
  window.setTimeout(turn, Number(region.dataset.every));
});
