/** The parts that screens are made of. */
export { Badge, Button, CopyButton, CoverageNote, Empty, ErrorBox, Field, Id, Loading, Select, Stale, TextInput, type Tone } from './basic';
export { Dialog } from './Dialog';
export { Picker, type PickerProps } from './Picker';
export { type Scope } from './lookup';
export { RangePicker, type RangePickerProps } from './RangePicker';
export { Spark } from './Spark';
export { Table, type Column } from './Table';
export { TagsEditor, type TagsEditorProps } from './TagsEditor';
