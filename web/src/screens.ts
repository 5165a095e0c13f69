/** The code of each screen, which is fetched when it is asked for; asked again it is here already. */
import type { ComponentType } from 'react';
import type { Screen } from './hash';

export type Loader = () => Promise<{ default: ComponentType }>;

export const LOADERS: Record<Screen, Loader> = {
  query: () => import('./screens/query/Query'),
  explore: () => import('./screens/explore/Explore'),
  live: () => import('./screens/live/Live'),
  cluster: () => import('./screens/cluster/Cluster'),
  data: () => import('./screens/data/Data'),
};
