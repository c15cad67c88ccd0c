// Without this script the page is complete, as of its last load. With it, the page follows the node.
const node = document.getElementById('node'), live = document.getElementById('live');
const events = new EventSource('/v1/events');
events.onopen = () => { live.textContent = 'Live.'; };
events.onerror = () => {
  live.textContent = 'Not connected: this is what was known last. ' +
    (events.readyState === EventSource.CLOSED ? 'Reload the page.' : 'Connecting …');
};
events.addEventListener('node', (event) => {
  const open = new Set(Array.from(node.querySelectorAll('details[open]'), (d) => d.id));
  node.innerHTML = event.data;
  for (const d of node.querySelectorAll('details')) d.open ||= open.has(d.id);
  document.title = node.querySelector('h1').textContent;
});
