'use strict';
// Sorting: each heading becomes a button. What has no value stays last.
for (const table of document.querySelectorAll('table[data-sortable]')) {
  const headings = [...table.tHead.rows[0].cells];
  const key = (row, at) => {
    const cell = row.cells[at], value = cell.dataset.value;
    if (value === undefined) return cell.textContent;
    return value === '' || Number.isNaN(Number(value)) ? null : Number(value);
  };
  const before = (a, b) => typeof a === 'string' ? a.localeCompare(b, 'en', { numeric: true }) : a - b;
  headings.forEach((heading, at) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener('click', () => {
      const descending = heading.getAttribute('aria-sort') === 'ascending';
      headings.forEach(other => other.removeAttribute('aria-sort'));
      heading.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
      const body = table.tBodies[0];
      const rows = [...body.rows].map(row => [key(row, at), row]).sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        return descending ? before(b, a) : before(a, b);
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}
// Plots: what the point nearest to the pointer is, and one series alone while the pointer is over its name.
for (const plot of document.querySelectorAll('.plot')) {
  const svg = plot.querySelector('svg'), tip = plot.querySelector('.tip');
  const points = JSON.parse(svg.dataset.points);
  const hide = () => { tip.hidden = true; };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const away = ([px, py]) => Math.hypot(px * scale - x, py * scale - y);
    const nearest = points.reduce((best, point) => away(point) < away(best) ? point : best, points[0]);
    if (!nearest || away(nearest) > 28) return hide();
    tip.textContent = nearest[2];
    tip.hidden = false;
    const left = Math.min(Math.max(nearest[0] * scale - tip.offsetWidth / 2, 0), box.width - tip.offsetWidth);
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(nearest[1] * scale - tip.offsetHeight - 12, 0)}px`;
  });
  svg.addEventListener('pointerleave', hide);
  for (const entry of plot.parentElement.querySelectorAll('.legend li')) {
    const colours = new Set([...plot.parentElement.querySelectorAll('.legend li')].map(li => li.dataset.colour));
    const of = shape => [shape.getAttribute('fill'), shape.getAttribute('stroke')].find(colour => colours.has(colour));
    entry.addEventListener('pointerenter', () => {
      for (const shape of svg.querySelectorAll('[fill],[stroke]')) {
        const colour = of(shape);
        shape.toggleAttribute('data-other', colour !== undefined && colour !== entry.dataset.colour);
      }
      plot.classList.add('dimmed');
    });
    entry.addEventListener('pointerleave', () => plot.classList.remove('dimmed'));
  }
}
