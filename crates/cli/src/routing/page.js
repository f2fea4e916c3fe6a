'use strict';
// Numbers follow the pointer, or the arrow keys in a focused plot. Without this script the browser's own
// titles show the same.
const tip = document.getElementById('tip');
function show(place, x, y) {
  tip.textContent = place.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  tip.style.left = Math.max(4, left) + 'px';
  tip.style.top = Math.max(4, Math.min(y - box.height / 2, innerHeight - box.height - 4)) + 'px';
}
for (const svg of document.querySelectorAll('figure svg')) {
  const places = [...svg.querySelectorAll('.place')];
  let at = -1;
  const leave = () => {
    places.forEach((place) => place.classList.remove('on'));
    tip.hidden = true;
  };
  for (const place of places) {
    place.querySelector('title').remove();
    place.addEventListener('pointermove', (event) => {
      leave();
      at = places.indexOf(place);
      show(place, event.clientX, event.clientY);
    });
  }
  svg.addEventListener('pointerleave', leave);
  svg.addEventListener('blur', leave);
  svg.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === 'Escape') leave();
    if (!step || !places.length) return;
    event.preventDefault();
    at = Math.max(0, Math.min(places.length - 1, at + step));
    leave();
    places[at].classList.add('on');
    const box = places[at].getBoundingClientRect();
    show(places[at], box.x + box.width / 2, box.y + box.height / 3);
  });
}
for (const slider of document.querySelectorAll('.slider')) {
  const layers = [...slider.parentElement.querySelectorAll('.layer')];
  const input = slider.querySelector('input');
  input.addEventListener('input', () => {
    layers.forEach((layer, index) => layer.classList.toggle('hidden', index !== Number(input.value)));
    slider.querySelector('output').textContent = layers[Number(input.value)].dataset.name;
  });
}
