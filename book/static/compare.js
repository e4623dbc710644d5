/* Two images, one over the other, and a border between them that moves: with the mouse, a finger or
   the arrow keys, as any slider does. */
document.addEventListener("input", (event) => {
  const box = event.target.closest(".compare");
  if (!box) return;
  if (event.target.matches("select")) {
    const over = box.querySelector(".compare-over");
    const chosen = event.target.selectedOptions[0];
    over.style.objectPosition = chosen.value;
    over.alt = chosen.textContent;
  } else {
    box.style.setProperty("--at", event.target.value + "%");
  }
});
