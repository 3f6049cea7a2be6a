// What a page offers to fill in: its controls with everything that people call them by, its buttons, and what it says of errors.
// The element of every control and button is marked with a number, data-relgrad.
() => {
  const seen = (window.__relgrad ||= {});
  seen.marks ||= new WeakMap();
  seen.next ||= 1;
  const squeeze = text => (text || '').trim().replace(/\s+/g, ' ');
  const CONTROLS = 'input, select, textarea, [contenteditable=""], [contenteditable="true"], [contenteditable="plaintext-only"]';
  const BUTTONS = 'button, input[type=submit], input[type=button], input[type=reset], input[type=image], [role=button]';

  const roots = [document];
  for (let i = 0; i < roots.length; i++)
    for (const element of roots[i].querySelectorAll('*')) if (element.shadowRoot) roots.push(element.shadowRoot);
  const all = selector => roots.flatMap(root => [...root.querySelectorAll(selector)]);
  const mark = element => {
    if (!seen.marks.has(element)) {
      seen.marks.set(element, seen.next++);
      element.setAttribute('data-relgrad', seen.marks.get(element));
    }
    return seen.marks.get(element);
  };
  const shown = element => {
    if (!element.checkVisibility({visibilityProperty: true})) return false;
    const box = element.getBoundingClientRect();
    return box.right + scrollX > 0 && box.bottom + scrollY > 0 && box.width > 0 && box.height > 0;
  };
  const text = element => {
    if (!element) return '';
    const copy = element.cloneNode(true);
    copy.querySelectorAll('input, select, textarea, button, script, style, datalist').forEach(inner => inner.remove());
    return squeeze(copy.textContent);
  };
  const byIds = (element, ids) =>
    squeeze((ids || '').split(/\s+/).map(id => text(id && element.getRootNode().getElementById(id))).join(' '));
  const forms = all('form');
  const formOf = element => forms.indexOf(element.form ?? element.closest('form'));
  const legendOf = element => text(element?.querySelector(':scope > legend'));
  const groupName = group => group
    ? byIds(group, group.getAttribute('aria-labelledby')) || squeeze(group.getAttribute('aria-label')) || legendOf(group) : '';
  const section = element => {
    const names = [];
    for (let group = element.closest('fieldset, [role=group], [role=radiogroup]'); group;
         group = group.parentElement?.closest('fieldset, [role=group], [role=radiogroup]'))
      if (groupName(group)) names.push(groupName(group));
    return names;
  };
  // The text that stands right before an element, and names no other control.
  const caption = (element, within) => {
    for (let here = element; here && here !== within; here = here.parentElement) {
      for (let before = here.previousSibling; before; before = before.previousSibling) {
        if (before.nodeType === Node.TEXT_NODE && squeeze(before.textContent)) return squeeze(before.textContent);
        if (before.nodeType !== Node.ELEMENT_NODE || /^(BR|HR|SCRIPT|STYLE)$/.test(before.tagName)) continue;
        if (before.matches(CONTROLS) || before.querySelector(CONTROLS + ', button')) return '';
        if (before.tagName === 'LABEL' && before.control && before.control !== element) return '';
        if (text(before)) return text(before);
      }
      if (here.parentElement?.matches('form, body, fieldset, section, main')) return '';
    }
    return '';
  };
  const state = element => element.matches(':disabled') || element.getAttribute('aria-disabled') === 'true' ? 'disabled'
    : element.readOnly && !/^(checkbox|radio|file)$/.test(element.type) ? 'read-only'
    : shown(element) ? ''
    : /^(checkbox|radio|file)$/.test(element.type) && [...(element.labels || [])].some(shown) ? '' : 'hidden';
  const ownNames = element => [
    ['label', squeeze([...(element.labels || [])].map(text).join(' '))],
    ['aria-labelledby', byIds(element, element.getAttribute('aria-labelledby'))],
    ['aria-label', squeeze(element.getAttribute('aria-label'))],
    ['placeholder', squeeze(element.getAttribute('placeholder') || element.getAttribute('data-placeholder'))],
    ['title', squeeze(element.getAttribute('title'))],
  ];
  const describe = (element, kind, names) => ({
    number: mark(element), kind, form: formOf(element), name: element.getAttribute('name') || '', id: element.id || '',
    names: names.filter(([, name]) => name), section: section(element), state: state(element), options: [],
    value: kind === 'contenteditable' ? element.innerText : element.value ?? '', checked: element.checked ?? false,
    step: element.getAttribute('step') || '',
  });
  const optionOf = (box, position) => ({
    number: mark(box), text: ownNames(box).map(([, name]) => name).find(Boolean) || box.value, value: box.value,
    disabled: state(box) !== '', chosen: box.checked, position,
  });

  const controls = [], boxes = [];
  for (const element of all(CONTROLS)) {
    if (/^(hidden|submit|button|reset|image)$/.test(element.type)) continue;
    const kind = element.isContentEditable && !element.matches('input, select, textarea') ? 'contenteditable' : element.type;
    if (kind === 'contenteditable' && element.parentElement?.isContentEditable) continue;
    if (kind === 'checkbox' || kind === 'radio') boxes.push(element);
    const names = ownNames(element);
    if (!names.slice(0, 3).some(([, name]) => name) && kind !== 'radio' && kind !== 'checkbox') {
      const set = element.closest('fieldset');
      if (set && set.querySelectorAll(CONTROLS).length === 1) names.push(['legend', groupName(set)]);
      names.push(['caption', caption(element, element.form)]);
    }
    const control = describe(element, kind === 'radio' ? 'radio-button' : kind, names);
    if (element.tagName === 'SELECT')
      control.options = [...element.options].map((option, position) => ({
        number: position, text: squeeze(option.label || option.text), value: option.value, disabled: option.disabled,
        chosen: option.selected, position,
      }));
    controls.push(control);
  }
  // Boxes that belong together: those of one name, and those of one group with a name.
  const groups = new Map();
  for (const box of boxes) {
    const set = box.closest('fieldset, [role=group], [role=radiogroup]');
    const key = box.name ? `${formOf(box)}/${box.type}/${box.name}` : set && groupName(set) ? set : null;
    for (const one of new Set([key, box.type === 'checkbox' && set && groupName(set) ? set : null]))
      if (one) groups.set(one, [...(groups.get(one) || []), box]);
  }
  const told = new Set();
  for (const [key, members] of groups) {
    const first = members[0], radio = first.type === 'radio';
    const identity = members.map(mark).join();
    if ((!radio && members.length < 2) || told.has(identity)) continue;
    told.add(identity);
    let within = first.parentElement;
    while (within && !members.every(member => within.contains(member))) within = within.parentElement;
    const set = first.closest('fieldset, [role=group], [role=radiogroup]');
    const whole = set && members.every(member => set.contains(member)) &&
      set.querySelectorAll('input[type=radio], input[type=checkbox]').length === members.length;
    const start = first.closest('label') || first;
    const names = [
      ['legend', whole ? groupName(set) : ''],
      ['caption', caption(within || first, first.form) || (within ? captionInside(within, start) : '')],
    ];
    groupsOut(members, names, radio ? 'radio' : 'checkboxes');
  }
  function captionInside(within, start) {
    for (const child of within.childNodes) {
      if (child === start || child.contains?.(start)) return '';
      if (child.matches?.('legend') || child.matches?.(CONTROLS) || child.querySelector?.(CONTROLS)) continue;
      const said = child.nodeType === Node.TEXT_NODE ? squeeze(child.textContent) : text(child);
      if (said) return said;
    }
    return '';
  }
  function groupsOut(members, names, kind) {
    const group = describe(members[0], kind, names);
    group.section = group.section.filter(name => !group.names.some(([, own]) => own === name));
    group.options = members.map(optionOf);
    group.state = group.options.every(option => option.disabled) ? state(members[0]) || 'disabled' : '';
    controls.push(group);
  }

  const buttons = all(BUTTONS).map(button => ({
    number: mark(button), kind: button.type === 'image' ? 'submit' : button.matches('button, input') ? button.type : 'button',
    text: squeeze(button.tagName === 'INPUT' ? button.value || button.alt || (button.type === 'submit' ? 'Submit' : '') : text(button) || button.textContent)
      || squeeze(button.getAttribute('aria-label')) || squeeze(button.title),
    form: formOf(button), state: state(button), dialog: button.closest('dialog[open], [role=dialog], [role=alertdialog]') !== null,
  }));
  const captcha = all('.g-recaptcha, .h-captcha, .cf-turnstile, [data-sitekey], iframe[src*="captcha" i], [id*="captcha" i], [name*="captcha" i], [class*="captcha" i]')
    .filter(element => element.matches('iframe, [data-sitekey]') || shown(element))[0];
  const wrong = all('[aria-invalid="true"], .error, .errors, .errorlist, .invalid-feedback, .field-error, .form-error, .error-message, .is-invalid, .has-error')
    .filter(shown).map(element => text(element) || ownNames(element).map(([, name]) => name).find(Boolean) || element.name || '').filter(Boolean);
  return {
    controls, buttons, url: location.href, title: document.title, errors: wrong.slice(0, 5),
    captcha: captcha ? captcha.outerHTML.slice(0, 80) : '', forms: forms.length,
    scripts: document.scripts.length > 0 || roots.length > 1,
  };
}
