/** Puts the page into the document. */
import { createRoot } from 'react-dom/client';
import { App } from './App';
import { applyTheme } from './hooks';

applyTheme();
const root = document.getElementById('root');
if (root !== null) createRoot(root).render(<App />);
