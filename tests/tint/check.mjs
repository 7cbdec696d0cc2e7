// Hands WGSL to Tint, the compiler of Dawn and Chromium: node check.mjs MODULES FILE, where MODULES is a folder that holds
// node_modules/webgpu and FILE a JSON array of { name, code }. Prints a JSON line { name, message } for each text that is
// refused, and { checked } at the end.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const [modules, file] = process.argv.slice(2);
const entry = createRequire(pathToFileURL(`${modules}/`)).resolve('webgpu');
const { create } = await import(pathToFileURL(entry));
// Dawn ends with the object that create returns, so it is kept where it is not collected.
globalThis.dawn = create([]);
const adapter = await globalThis.dawn.requestAdapter();
const features = ['shader-f16', 'subgroups'];
const missing = features.filter((feature) => !adapter?.features.has(feature));
if (missing.length > 0) {
    console.error(`no adapter that Dawn takes has ${missing.join(' and ')}`);
    process.exit(1);
}
const device = await adapter.requestDevice({ requiredFeatures: features });
const shaders = JSON.parse(readFileSync(file, 'utf8'));
for (const { name, code } of shaders) {
    device.pushErrorScope('validation');
    device.createShaderModule({ code });
    const error = await device.popErrorScope();
    if (error !== null) {
        console.log(JSON.stringify({ name, message: error.message }));
    }
}
console.log(JSON.stringify({ checked: shaders.length }));
// Dawn's threads would keep the process alive.
process.exit(0);
