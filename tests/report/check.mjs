// Opens reports in a browser: node check.mjs MODULES BROWSER FOLDER FILE..., where MODULES is a folder that holds
// node_modules/playwright-core and FOLDER gets the screenshots. Ends with status 1 if anything is not as it should be.
import { createRequire } from 'node:module';
import { basename, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, executablePath, folder, ...files] = process.argv.slice(2);
const { chromium } = createRequire(pathToFileURL(`${resolve(modules)}/`))('playwright-core');
const FIGURES = ['throughput', 'roofline', 'distribution', 'timeline'];

let checks = 0, failures = 0;
function check(good, what) {
  checks += 1;
  if (good) return;
  failures += 1;
  console.error(`FAILED: ${what}`);
}

/** What holds at any width, in any scheme, with JavaScript and without. */
async function everywhere(page, name) {
  const found = await page.evaluate((figures) => ({
    overflow: document.scrollingElement.scrollWidth - innerWidth,
    wide: [...document.querySelectorAll('body *')].filter(
      (element) => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.scroll, svg, .skip')).length,
    headings: document.querySelectorAll('h1').length,
    rows: document.querySelectorAll('#lines tbody tr').length,
    shown: [...document.querySelectorAll('#lines tbody tr')].filter((row) => row.getBoundingClientRect().height > 20).length,
    captions: [...document.querySelectorAll('table')].every((table) => table.caption?.textContent.length > 20),
    small: [...document.querySelectorAll('body *')].filter((element) => element.childNodes.length > 0
      && [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim() !== '')
      && !element.closest('svg, style, script') && parseFloat(getComputedStyle(element).fontSize) < 12.5).length,
    figures: figures.map((id) => {
      const svg = document.querySelector(`#${id} .plot svg`);
      if (svg === null) return { id, nothing: document.querySelector(`#${id} .nothing`) !== null };
      const box = svg.getBoundingClientRect();
      const texts = [...svg.querySelectorAll('text')].map((text) => text.getBoundingClientRect());
      return {
        id,
        shapes: svg.querySelectorAll('rect, circle, polygon, polyline, line').length,
        size: [box.width, box.height],
        named: svg.querySelector(':scope > title')?.textContent.length > 3 && svg.querySelector(':scope > desc')?.textContent.length > 20,
        outside: texts.filter((text) => text.left < box.left - 1 || text.right > box.right + 1).length,
        least: Math.min(...texts.map((text) => Math.min(text.height, text.width * 4))),
      };
    }),
  }), FIGURES);
  check(found.overflow <= 0, `${name}: the page is ${found.overflow} px wider than the window`);
  check(found.wide === 0, `${name}: ${found.wide} elements reach over the right edge`);
  check(found.headings === 1 && found.captions, `${name}: one h1, and a caption for each table`);
  check(found.rows > 10 && found.shown === found.rows, `${name}: ${found.shown} of ${found.rows} rows are shown`);
  check(found.small === 0, `${name}: ${found.small} texts are smaller than 12.5 px`);
  for (const figure of found.figures) {
    if (figure.nothing !== undefined) {
      check(figure.nothing, `${name}: ${figure.id} is missing`);
      continue;
    }
    check(figure.shapes > 8 && figure.size[0] > 250 && figure.size[1] > 150, `${name}: ${figure.id} is ${JSON.stringify(figure)}`);
    check(figure.named, `${name}: ${figure.id} has no title and description`);
    check(figure.outside === 0, `${name}: ${figure.outside} texts of ${figure.id} reach out of the plot`);
    check(figure.least >= 9, `${name}: text of ${figure.id} is ${figure.least} px high`);
  }
  return found;
}

async function sorting(page, name) {
  const column = (at) => page.$$eval(`#lines tbody tr`, (rows, at) => rows.map((row) => row.cells[at].dataset.value ?? ''), at);
  const sorted = (values, factor) => {
    const numbers = values.filter((value) => value !== '').map(Number);
    const inOrder = numbers.every((value, at) => at === 0 || factor * (value - numbers[at - 1]) >= 0);
    return inOrder && values.slice(numbers.length).every((value) => value === '');
  };
  const median = page.locator('#lines thead th').nth(2), button = median.locator('button');
  const before = await column(0);
  await button.click();
  check(await median.getAttribute('aria-sort') === 'ascending' && sorted(await column(2), 1), `${name}: sorted by a click`);
  check(String(await column(0)) !== String(before), `${name}: a click changes the order`);
  await button.focus();
  await page.keyboard.press('Enter');
  check(await median.getAttribute('aria-sort') === 'descending' && sorted(await column(2), -1), `${name}: sorted by a key`);
  await page.keyboard.press('Tab');
  await page.keyboard.press('Space');
  const spread = page.locator('#lines thead th').nth(3);
  check(await spread.getAttribute('aria-sort') === 'ascending' && sorted(await column(3), 1), `${name}: the next column by Tab and Space`);
  check(await median.getAttribute('aria-sort') === null, `${name}: one column is sorted by`);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  check(outline === 'solid', `${name}: what has the focus is outlined, not ${outline}`);
  check((await column(0)).length === before.length, `${name}: no row is lost`);
}

async function keyboard(page, name) {
  await page.keyboard.press('Tab');
  const skip = await page.evaluate(() => ({ text: document.activeElement.textContent, top: document.activeElement.getBoundingClientRect().top }));
  check(skip.text.startsWith('Skip to') && skip.top >= -60, `${name}: the first Tab is on ${JSON.stringify(skip)}`);
  await page.keyboard.press('Enter');
  check(await page.evaluate(() => scrollY > 300 && location.hash === '#lines'), `${name}: the skip link leads to the table`);
}

async function pointing(page, name) {
  const svg = page.locator('#throughput .plot svg');
  await svg.scrollIntoViewIfNeeded();
  const { box, point } = await svg.evaluate((svg) => {
    const { left, top, width } = svg.getBoundingClientRect();
    return { box: { left, top, scale: width / svg.viewBox.baseVal.width }, point: JSON.parse(svg.dataset.points)[0] };
  });
  await page.mouse.move(box.left + point[0] * box.scale + 2, box.top + point[1] * box.scale + 2);
  const tip = page.locator('#throughput .tip');
  check(await tip.isVisible() && (await tip.textContent()).includes('FLOP/s'), `${name}: a point says what it is`);
  await page.mouse.move(0, 0);
  check(await tip.isHidden(), `${name}: and no longer than the pointer is there`);
}

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
for (const file of files) {
  const rows = new Set(), papers = {};
  for (const width of [1280, 390]) for (const colorScheme of ['light', 'dark']) for (const javaScriptEnabled of [true, false]) {
    const script = javaScriptEnabled ? 'js' : 'no-js';
    const name = [basename(file, '.html'), width, colorScheme, script].join('-');
    const context = await browser.newContext({ viewport: { width, height: 844 }, colorScheme, javaScriptEnabled, deviceScaleFactor: 2 });
    const page = await context.newPage();
    const complaints = [], asked = [];
    page.on('pageerror', (error) => complaints.push(error.message));
    page.on('console', (message) => message.type() === 'error' && complaints.push(message.text()));
    page.on('request', (request) => asked.push(request.url()));
    await page.goto(pathToFileURL(resolve(file)).href);
    const found = await everywhere(page, name);
    rows.add(found.rows);
    papers[`${width}-${script}-${colorScheme}`] = await page.evaluate(() => {
      const shape = document.querySelector('#throughput .plot :is(circle, polygon)'), text = document.querySelector('.plot text');
      return [getComputedStyle(document.body).backgroundColor, shape, text].map(
        (part) => typeof part === 'string' ? part : getComputedStyle(part).fill);
    });
    await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
    if (javaScriptEnabled) {
      await sorting(page, name);
      await pointing(page, name);
    }
    await page.reload();
    await keyboard(page, name);
    check(complaints.length === 0, `${name}: the console says ${complaints.join('; ')}`);
    check(new Set(asked).size === 1, `${name}: it asked for ${asked.join(', ')}`);
    await context.close();
  }
  check(rows.size === 1, `${file}: the same rows everywhere`);
  for (const [key, light] of Object.entries(papers).filter(([key]) => key.endsWith('-light'))) {
    const dark = papers[key.replace('-light', '-dark')];
    light.forEach((colour, at) => check(colour !== dark[at], `${file}: ${key}: colour ${at} is ${colour} in the dark too`));
  }
}
await browser.close();
console.log(`${files.length} reports, ${checks} checks, ${failures} failed; screenshots are in ${folder}`);
process.exit(failures === 0 ? 0 : 1);
