/** A `ref` for what has the keyboard as soon as it is there: `autofocus` is heeded once a page. */
export function focused(element: HTMLElement | null): void {
  element?.focus();
}
