/** Light, dark, or as the system has it. */
import { useTheme, type ThemeChoice } from './hooks';
import { Select } from './ui';

const THEMES = [
  { value: 'system', label: 'as system' },
  { value: 'light', label: 'light' },
  { value: 'dark', label: 'dark' },
];

function Icon({ theme }: { theme: 'light' | 'dark' }) {
  return (
    <svg viewBox="0 0 20 20" width="18" height="18" aria-hidden="true" fill="none" stroke="currentColor" strokeWidth="1.6" strokeLinecap="round">
      {theme === 'dark'
        ? <path d="M16.5 12.2A7 7 0 0 1 7.8 3.5a7 7 0 1 0 8.7 8.7z" strokeLinejoin="round" />
        : <><circle cx="10" cy="10" r="3.6" /><path d="M10 1.5v2M10 16.5v2M1.5 10h2M16.5 10h2M4 4l1.4 1.4M14.6 14.6 16 16M4 16l1.4-1.4M14.6 5.4 16 4" /></>}
    </svg>
  );
}

/** The icon is the theme that is seen, the words are the choice. */
export function ThemeSwitch() {
  const { theme, choice, setChoice } = useTheme();
  return (
    <label className="theme">
      <Icon theme={theme} /> <span>Theme</span>
      <Select value={choice} options={THEMES} onChange={(value) => setChoice(value as ThemeChoice)} />
    </label>
  );
}
