// A page without scripts, after controls.js has marked it: everything that decides what its forms send. null where a page may change by itself.
() => {
  const marks = window.__relgrad.marks;
  // What the form itself says: a field of the name `action` hides the property of this name.
  const of = (form, name) => Object.getOwnPropertyDescriptor(HTMLFormElement.prototype, name).get.call(form);
  const moves = element => element.shadowRoot || [...element.attributes].some(
    ({name, value}) => name.startsWith('on') || /^(form(action|method|enctype|novalidate|target)|contenteditable|popover)$/.test(name)
      || /^\s*javascript:/i.test(value));
  const lively = document.scripts.length || document.querySelector('iframe, object, embed, dialog, details, meta[http-equiv=refresh]')
    || [...document.querySelectorAll('*')].some(moves) || [...document.forms].some(form => of(form, 'target'));
  if (lively) return null;
  const RULES = ['required', 'minlength', 'maxlength', 'pattern', 'min', 'max', 'step'];
  return [...document.forms].map(form => ({
    action: of(form, 'action'), method: of(form, 'method'), enctype: of(form, 'enctype'), validates: !of(form, 'noValidate'),
    fields: [...of(form, 'elements')].filter(element => /^(INPUT|SELECT|TEXTAREA|BUTTON)$/.test(element.tagName)).map(element => ({
      number: marks.get(element) ?? 0, kind: element.type, name: element.name, value: element.value,
      ticked: element.checked ?? false, disabled: element.matches(':disabled'), fixed: element.readOnly ?? false,
      rules: Object.fromEntries(RULES.filter(rule => element.hasAttribute(rule)).map(rule => [rule, element.getAttribute(rule)])),
      size: element.size ?? 0,
      options: [...(element.tagName === 'SELECT' ? element.options : [])].map(
        option => ({value: option.value, chosen: option.selected, disabled: option.disabled})),
    })),
  }));
}
