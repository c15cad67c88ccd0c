// Tables with buttons in their headers are sorted by these. Without this script they are in the order of the report.
for (const button of document.querySelectorAll('th button')) {
  button.addEventListener('click', () => {
    const header = button.closest('th'), table = button.closest('table');
    const down = header.getAttribute('aria-sort') === 'ascending';
    for (const other of table.querySelectorAll('th[aria-sort]')) other.setAttribute('aria-sort', 'none');
    header.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const key = (row) => row.cells[header.cellIndex].dataset.rank ?? row.cells[header.cellIndex].textContent;
    const rows = Array.from(table.tBodies[0].rows);
    rows.sort((a, b) => (down ? -1 : 1) * key(a).localeCompare(key(b), 'en', {numeric: true}));
    table.tBodies[0].append(...rows);
  });
}
