export function Brand() {
  return (
    <h1 className="brand">
      <svg className="brand-mark" viewBox="0 0 24 24" aria-hidden="true">
        <circle cx="12" cy="9" r="6" />
        <path d="M12 3v12M6 9h12" />
        <path d="M2 21c2.5 0 2.5-2 5-2s2.5 2 5 2 2.5-2 5-2 2.5 2 5 2" />
      </svg>
      Millstream
    </h1>
  );
}
