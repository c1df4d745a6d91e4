"use strict";
// Filters the cards that are in the page. Without this script all of them are shown, in their order.
(() => {
  const gallery = document.getElementById("gallery");
  const controls = document.getElementById("filters");
  if (!gallery || !controls) return;
  const cards = Array.from(gallery.children, (card, order) => ({
    card, order, text: card.textContent.toLowerCase(),
    verdict: card.dataset.verdict, groups: card.dataset.groups.split(" "),
    yes: "yes" in card.dataset ? Number(card.dataset.yes) : null,
  }));
  const field = (name) => document.getElementById(name);
  const verdict = field("by-verdict"), group = field("by-group"), search = field("by-text"), sort = field("sort");
  const said = field("shown");
  const orders = {
    page: (a, b) => a.order - b.order,
    // Records without a probability stand at the end of both.
    high: (a, b) => (b.yes ?? -1) - (a.yes ?? -1) || a.order - b.order,
    low: (a, b) => (a.yes ?? 2) - (b.yes ?? 2) || a.order - b.order,
  };
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const one of cards) {
      const fits = (!verdict.value || one.verdict === verdict.value)
        && (!group.value || one.groups.includes(group.value))
        && words.every((word) => one.text.includes(word));
      one.card.hidden = !fits;
      count += fits;
    }
    said.textContent = `${count} of ${cards.length} records shown`;
  };
  const arrange = () => gallery.append(...cards.sort(orders[sort.value]).map((one) => one.card));
  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 120); });
  for (const select of [verdict, group]) select.addEventListener("change", show);
  sort.addEventListener("change", arrange);
  field("reset").addEventListener("click", () => {
    for (const select of [verdict, group, sort]) select.selectedIndex = 0;
    search.value = "";
    arrange();
    show();
  });
  document.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement?.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
    }
  });
  controls.hidden = false;
  show();
})();
