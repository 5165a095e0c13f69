import { createRoot } from 'react-dom/client';
import { App } from './App';
import { applyTheme } from './hooks';
import './theme.css';
import './styles/base.css';
import './styles/parts.css';

applyTheme();
const root = document.getElementById('root');
if (root !== null) createRoot(root).render(<App />);
