/** The entry: the screen that the URL names is fetched beside the shell, not behind it. */
import { splitHash } from './hash';
import { LOADERS } from './screens';
import './theme.css';
import './styles/base.css';
import './styles/parts.css';

// one that fails is asked for again by the shell, which says so
LOADERS[splitHash(window.location.hash).screen]().catch(() => undefined);
void import('./shell');
