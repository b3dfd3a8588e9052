// What we use of ComfyUI's page.

declare module "comfyui" {
  interface Widget {
    name: string;
    label?: string;
    value: unknown;
    serialize?: boolean;
    computeSize?: (() => [width: number, height: number]) | undefined;
    computeLayoutSize?: ((node: Node) => object) | undefined;
    options?: { values?: string[] | (() => string[]) };
    callback?: ((...values: any[]) => any) | undefined;
  }

  interface ChangeTracker {
    beforeChange(): void;
    afterChange(): void;
  }

  interface Input {
    name: string;
    localized_name?: string;
    link: number | null;
    widget?: { name: string };
  }

  interface Output {
    name: string;
    localized_name?: string;
  }

  interface NodeDefinition {
    name: string;
    display_name: string;
    description: string;
    input?: Partial<Record<"required" | "optional", Record<string, [unknown, { tooltip?: string }?]>>>;
    output_tooltips?: (string | undefined)[];
  }

  interface Graph {
    nodes: Node[];
    /** Of the whole workflow, by their ids. */
    subgraphs?: Map<string, Graph>;
    getNodeById(id: string | number): Node | null | undefined;
  }

  interface Node {
    id: number | string;
    comfyClass?: string;
    widgets: Widget[];
    inputs: Input[];
    outputs: Output[];
    /** None before it is added to one. */
    graph: Graph | null;
    /** Of a node that stands for a graph of its own. */
    subgraph?: Graph;
    size: [number, number];
    properties: Record<string, unknown>;
    onConfigure?: ((...values: any[]) => any) | undefined;
    onConnectionsChange?: ((...values: any[]) => any) | undefined;
    onExecuted?: ((...values: any[]) => any) | undefined;
    onRemoved?: ((...values: any[]) => any) | undefined;
    onSerialize?: ((stored: { widgets_values?: unknown[] }) => void) | undefined;
    onWidgetChanged?:
      | ((name: string, value: unknown, before: unknown, widget: Widget) => void)
      | undefined;
    refreshComboInNode?: ((...values: any[]) => any) | undefined;
    addDOMWidget(
      name: string,
      type: string,
      element: HTMLElement,
      options: {
        serialize?: boolean;
        getMinHeight?: () => number;
        getMaxHeight?: () => number;
        margin?: number;
        getValue?: () => string;
        setValue?: (value: unknown) => void;
      },
    ): Widget;
    computeSize(): [number, number];
    setSize(size: [number, number]): void;
    setDirtyCanvas(foreground: boolean, background: boolean): void;
  }

  interface MenuItem {
    content: string;
    callback: () => void;
  }

  interface Extension {
    name: string;
    getNodeMenuItems?(node: Node): MenuItem[];
    init?(): void | Promise<void>;
    beforeRegisterNodeDef?(nodeType: unknown, definition: NodeDefinition): void;
    /** Makers of widgets, by the type of the input. */
    getCustomWidgets?(): Record<string, (node: Node, name: string) => { widget: Widget }>;
    refreshComboInNodes?(): void;
    setup?(): void;
    /** The outputs of a prompt of before were brought back. */
    onNodeOutputsUpdated?(outputs: Record<string, Record<string, any>>): void;
    nodeCreated?(node: Node): void;
  }
}

declare module "*/scripts/app.js" {
  export const app: {
    rootGraph: import("comfyui").Graph;
    canvas: {
      processMouseWheel(event: WheelEvent): void;
      emitBeforeChange(): void;
      emitAfterChange(): void;
      setDirty(foreground: boolean, background: boolean): void;
    };
    extensionManager: {
      setting: { get(name: string): unknown };
      workflow?: { activeWorkflow?: { changeTracker: import("comfyui").ChangeTracker } | null };
    };
    registerExtension(extension: import("comfyui").Extension): void;
  };
}

declare module "*/scripts/api.js" {
  export const api: {
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    apiURL(route: string): string;
    addEventListener(event: string, listener: (event: CustomEvent<any>) => void): void;
  };
}
