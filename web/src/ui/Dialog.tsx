/** A dialog over the page: the browser's own, which keeps the focus inside and closes by Escape. */
import { useEffect, useId, useRef, type ReactNode } from 'react';
import { Button } from './basic';

interface DialogProps {
  title: ReactNode;
  /** Escape, or the cross. */
  onClose: () => void;
  children: ReactNode;
}

/** Open as long as it is rendered, even where the browser closes it by itself, as at a second Escape. The focus goes back to where it was. */
export function Dialog({ title, onClose, children }: DialogProps) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const dialog = ref.current;
    const before = document.activeElement;
    if (dialog !== null && !dialog.open) dialog.showModal();
    // the browser would take the cross, which comes first
    dialog?.querySelector<HTMLElement>('input, select, textarea, .actions button')?.focus();
    return () => {
      dialog?.close();
      if (before instanceof HTMLElement && before.isConnected) before.focus();
    };
  }, []);
  return (
    <dialog ref={ref} className="dialog" aria-labelledby={id} onCancel={(event) => { event.preventDefault(); onClose(); }}
      onClose={() => ref.current?.showModal()}>
      <header>
        <h2 id={id}>{title}</h2>
        <Button kind="quiet" small aria-label="Close" onClick={onClose}>×</Button>
      </header>
      {children}
    </dialog>
  );
}
